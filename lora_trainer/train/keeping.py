"""When a run keeps its state, and doing it without holding the steps up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.events import Event
from lora_trainer.jobs.resume_point import sweep
from lora_trainer.train import state
from lora_trainer.train.outputs.background_writer import Writer
from lora_trainer.train.progress import Course

if TYPE_CHECKING:
    from lora_trainer.train.trainer import Trainer


class Keeping:
    """The states of one run, in its folder."""

    def __init__(self, trainer: Trainer, course: Course, writer: Writer, folder: Path) -> None:
        self.trainer, self.course, self.writer, self.folder = trainer, course, writer, folder
        self._kept: tuple[int, int, int] | None = None
        self._at = time.monotonic()

    def took_back(self) -> None:
        """The run is at a state that is on the disk."""
        self._kept = self._now()

    def sweep(self) -> None:
        """Takes away what a killed process left half-written in the run's folder."""
        sweep(self.folder)

    def _now(self) -> tuple[int, int, int]:
        return self.course.step, len(self.course.changes), len(self.course.files)

    def due(self, files: int) -> bool:
        """Whether the state is to be kept after this step, when `files` of weights were saved at it."""
        options = self.trainer.config.save
        by_steps = options.state_every_n_steps and self.course.step % options.state_every_n_steps == 0
        by_time = options.state_every_minutes and time.monotonic() - self._at >= options.state_every_minutes * 60
        return bool(files or by_steps or by_time)

    def keep(self) -> Iterator[Event]:
        """Hands a copy of the state to the writer; nothing where there is none to keep, or this one is kept already."""
        course, options = self.course, self.trainer.config.save
        now = self._now()
        if not options.state or not course.step or now == self._kept:
            return
        yield from self.writer.told()
        course.states += 1
        try:
            taken, folder, count = state.taken(self.trainer, course), self.folder, options.last_n_states
        except (RuntimeError, MemoryError):
            course.states -= 1
            raise
        self._kept, self._at = now, time.monotonic()
        self.writer.put(lambda: state.write(taken, folder, count))

    def megabytes(self) -> float:
        """About what a state takes on the disk."""
        return sum(group.buffer.numel() for group in self.trainer.optimizer.groups) * 16 / 2**20


class Forgetful(Keeping):
    """Of a process that trains along with another one, which keeps the state of both."""

    def due(self, files: int) -> bool:
        """Never."""
        return False

    def keep(self) -> Iterator[Event]:
        """Nothing is written."""
        return iter(())

    def sweep(self) -> None:
        """The first process does."""
