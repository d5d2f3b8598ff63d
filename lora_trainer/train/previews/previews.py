"""Draws preview pictures between the steps; one that fails or is interrupted is a warning and never ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
from PIL.Image import Image

from lora_trainer.control import Control
from lora_trainer.errors import TrainerError
from lora_trainer.events import Event, Phase, Progress, Sampled, Warned
from lora_trainer.host.base import Lease
from lora_trainer.messages import Message, say
from lora_trainer.train.memory.oom import free_cache
from lora_trainer.train.outputs.output import Output
from lora_trainer.train.previews.preview_prompts import Prompts, SampleRequest
from lora_trainer.train.previews.prompt_networks import PromptNetworks, network_notes
from lora_trainer.train.previews.sampling import draw
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.setup import preview_prompts
from lora_trainer.train.trainer import Trainer

Between = Callable[[], Iterator[Event]]
PREVIEW_ERRORS = (RuntimeError, MemoryError, OSError, ValueError, TypeError, ArithmeticError, LookupError, ImportError, TrainerError)
"""Errors of one picture, from sampler, host, memory or disk, that become a warning."""


class Previews:
    """Draws the preview prompts of one run into `folder`."""

    def __init__(
        self,
        trainer: Trainer,
        progress: TrainingProgress,
        output: Output,
        lease: Lease,
        networks: PromptNetworks,
        control: Control,
        folder: Path,
    ) -> None:
        self.trainer, self.progress, self.output, self.lease, self.control, self.folder = trainer, progress, output, lease, control, folder
        self.networks = networks
        self._reported = set(map(str, self._warnings(preview_prompts(trainer.config))))

    def draw(self, between: Between = lambda: iter(())) -> Iterator[Event]:
        """Draws every prompt with the current weights; does nothing when they were already drawn at this step.

        Config and prompt file are read anew, since they may have changed. `between` is run between two pictures, where the run may pause.
        """
        progress = self.progress
        if progress.sampled_at == progress.step:
            return
        prompts = preview_prompts(self.trainer.config)
        yield from self._report_new(prompts)
        if not prompts.requests:
            return
        yield Phase("sampling", len(prompts.requests))
        for done, (index, request) in enumerate(prompts.requests):
            if done:
                yield from between()
            if self.control.stopping:
                break
            yield from self._draw_one(index, request)
            yield Progress(done + 1)
        self._attach_to_files()

    def _report_new(self, prompts: Prompts) -> Iterator[Event]:
        """Warns about each bad row, and each network that is not used, once."""
        for warning in self._warnings(prompts):
            if str(warning) not in self._reported:
                self._reported.add(str(warning))
                yield Warned(warning, "sample.prompts")

    def _warnings(self, prompts: Prompts) -> list[Message]:
        return [*prompts.warnings, *network_notes(prompts, self.networks, self.lease)]

    def _draw_one(self, index: int, request: SampleRequest) -> Iterator[Event]:
        """Draws and saves one picture; yields nothing when it is interrupted, or when its prompt cannot be read."""
        progress, path, reason = self.progress, self._path(index), ""
        try:
            picture = self._make_picture(request)
            if picture is None:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except PREVIEW_ERRORS as error:
            reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        if reason:  # outside the handler, so that the exception's traceback no longer holds the tensors
            free_cache(self.lease.device)
            yield Warned(say("The preview at step {step} was left out: {reason}", step=progress.step, reason=reason))
            return
        if progress.sampled_at != progress.step:
            progress.sampled_at, progress.preview_path = progress.step, path
        yield Sampled(progress.step, progress.epoch, str(path), request.prompt, request.seed, index)

    def _attach_to_files(self) -> None:
        progress, names = self.progress, self.output.names
        if progress.sampled_at == progress.step:
            for saved in progress.files[-2:]:
                if saved in (names.epoch(progress.epoch), names.step(progress.step), names.final()):
                    self.output.attach_preview(saved)

    def _make_picture(self, request: SampleRequest) -> Image | None:
        trainer = self.trainer
        if not self.lease.own_previews:
            try:
                prompt = self.networks.read(request.prompt)
            except TrainerError:  # its weight is no number: a note has said so
                return None
            request, loras = attrs.evolve(request, prompt=prompt.text), [(path, weight) for _, path, weight in prompt.networks]
            with trainer.ema_weights(), trainer.with_networks(loras):
                return draw(trainer.bundle, request, trainer.precision, lambda: self.control.stopping, trainer.make_ready)
        request = attrs.evolve(request, prompt=self.networks.for_host(request.prompt))
        trainer.detach()
        try:
            return self.lease.preview(request, None if self.progress.step == 0 else self._write_network, 1.0, self.control)
        finally:
            trainer.rebuild(self.lease.source)

    def _write_network(self, path: Path) -> None:
        """Writes the network as it would be saved, for a host that draws with the file."""
        self.output.write(path)

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.output.names.name}_{self.progress.step:06d}_{index:02d}.png"


class NullPreviews(Previews):
    """The previews of a process that is not the main one: draws nothing."""

    def draw(self, between: Between = lambda: iter(())) -> Iterator[Event]:
        """Yields nothing."""
        return iter(())
