"""Preview pictures between the steps: one that fails or is interrupted is a warning, never the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from lora_trainer.control import Control
from lora_trainer.errors import TrainerError
from lora_trainer.events import Event, Phase, Progress, Sampled, Warned
from lora_trainer.host.base import Lease
from lora_trainer.messages import say
from lora_trainer.train.course import Course
from lora_trainer.train.output import Output
from lora_trainer.train.prompts import SampleRequest
from lora_trainer.train.sample import draw

if TYPE_CHECKING:
    from lora_trainer.train.setup import Trainer


class Previews:
    """Draws the preview prompts of one run into `folder`."""

    def __init__(self, trainer: Trainer, course: Course, output: Output, lease: Lease, control: Control, folder: Path) -> None:
        self.trainer, self.course, self.output, self.lease, self.control, self.folder = trainer, course, output, lease, control, folder

    def draw(self) -> Iterator[Event]:
        """Every prompt with the weights as they are; nothing when they were drawn at this step already."""
        trainer, course = self.trainer, self.course
        if not trainer.requests or course.sampled_at == course.step:
            return
        yield Phase("sampling", len(trainer.requests))
        for index, request in enumerate(trainer.requests):
            try:
                picture = self._draw(request)
            except (RuntimeError, OSError, TrainerError) as error:
                yield Warned(say("The preview at step {step} was left out: {reason}", step=course.step, reason=str(error)[:200]))
                break
            if picture is None:
                break
            path = self._path(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            if course.sampled_at != course.step:
                course.sampled_at, course.preview = course.step, path
            yield Sampled(course.step, course.epoch, str(path), request.prompt, request.seed, index)
            yield Progress(index + 1)
        self._show_with_files()

    def _show_with_files(self) -> None:
        course, names = self.course, self.output.names
        if course.sampled_at == course.step:
            for saved in course.files[-2:]:
                if saved in (names.epoch(course.epoch), names.step(course.step)):
                    self.output.describe(saved, course.preview)

    def _draw(self, request: SampleRequest) -> Image | None:
        trainer = self.trainer
        if not self.lease.own_previews:
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
