"""Preview pictures between the steps: one that fails or is interrupted is a warning, never the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL.Image import Image

from lora_trainer.control import Control
from lora_trainer.errors import TrainerError
from lora_trainer.events import Event, Phase, Progress, Sampled, Warned
from lora_trainer.host.base import Lease
from lora_trainer.messages import say
from lora_trainer.train.memory.oom import free_cache
from lora_trainer.train.outputs.output import Output
from lora_trainer.train.previews.preview_prompts import Prompts, SampleRequest
from lora_trainer.train.previews.sampling import draw
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.setup import prompts_of
from lora_trainer.train.trainer import Trainer

Between = Callable[[], Iterator[Event]]
LEFT_OUT = (RuntimeError, MemoryError, OSError, ValueError, TypeError, ArithmeticError, LookupError, ImportError, TrainerError)
"""What may go wrong with one picture, be it in a sampler, in the host, in the memory or on the disk."""


class Previews:
    """Draws the preview prompts of one run into `folder`."""

    def __init__(self, trainer: Trainer, course: TrainingProgress, output: Output, lease: Lease, control: Control, folder: Path) -> None:
        self.trainer, self.course, self.output, self.lease, self.control, self.folder = trainer, course, output, lease, control, folder
        self._told = set(map(str, prompts_of(trainer.config).notes))

    def draw(self, between: Between = lambda: iter(())) -> Iterator[Event]:
        """Every prompt with the weights as they are; nothing when they were drawn at this step already.

        The prompts are read now: config and prompt file may have changed. `between` two pictures the run may pause.
        """
        course = self.course
        if course.sampled_at == course.step:
            return
        prompts = prompts_of(self.trainer.config)
        yield from self._tell(prompts)
        if not prompts.requests:
            return
        yield Phase("sampling", len(prompts.requests))
        for done, (index, request) in enumerate(prompts.requests):
            if done:
                yield from between()
            if self.control.stopping:
                break
            yield from self._one(index, request)
            yield Progress(done + 1)
        self._show_with_files()

    def _tell(self, prompts: Prompts) -> Iterator[Event]:
        """What is new to say about the prompts: each bad row is named once."""
        for note in prompts.notes:
            if str(note) not in self._told:
                self._told.add(str(note))
                yield Warned(note, "sample.prompts")

    def _one(self, index: int, request: SampleRequest) -> Iterator[Event]:
        """One picture; nothing of it when it was interrupted."""
        course, path, reason = self.course, self._path(index), ""
        try:
            picture = self._draw(request)
            if picture is None:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except LEFT_OUT as error:
            reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        if reason:  # here the failed picture's tensors are gone with its exception
            free_cache(self.lease.device)
            yield Warned(say("The preview at step {step} was left out: {reason}", step=course.step, reason=reason))
            return
        if course.sampled_at != course.step:
            course.sampled_at, course.preview = course.step, path
        yield Sampled(course.step, course.epoch, str(path), request.prompt, request.seed, index)

    def _show_with_files(self) -> None:
        course, names = self.course, self.output.names
        if course.sampled_at == course.step:
            for saved in course.files[-2:]:
                if saved in (names.epoch(course.epoch), names.step(course.step), names.final()):
                    self.output.show_with(saved)

    def _draw(self, request: SampleRequest) -> Image | None:
        trainer = self.trainer
        if not self.lease.own_previews:
            with trainer.ema_weights():
                return draw(trainer.bundle, request, trainer.precision, lambda: self.control.stopping)
        trainer.detach()
        try:
            return self.lease.preview(request, None if self.course.step == 0 else self._write, 1.0, self.control)
        finally:
            trainer.rebuild(self.lease.source)

    def _write(self, path: Path) -> None:
        """What the preview is drawn with is what the file will hold."""
        self.output.write(path)

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.output.names.name}_{self.course.step:06d}_{index:02d}.png"


class NullPreviews(Previews):
    """Of a process that trains along with another one, which does the drawing."""

    def draw(self, between: Between = lambda: iter(())) -> Iterator[Event]:
        """Nothing is drawn."""
        return iter(())
