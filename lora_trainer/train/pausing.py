"""How a run waits: for the user, for the graphics card to rest, for space on the disk. The host has its model back meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_trainer.control import Control
from lora_trainer.errors import HostBusy, OutOfMemory
from lora_trainer.events import Event, Paused, Resumed, Warned
from lora_trainer.gc_pause import collect_garbage
from lora_trainer.host.base import Lease, message_with_fix
from lora_trainer.host.memory import MemoryLimit
from lora_trainer.messages import say
from lora_trainer.train.guards import missing_mb
from lora_trainer.train.outputs.background_writer import BackgroundWriter
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.trainer import Trainer

DISK_POLL_SECONDS = 5.0
NOT_ENOUGH = say("There is not enough memory to continue: close other programs that use it, then press Resume.")


class Pausing:
    """Pauses and resumes one run: gives lock and device back to the host, waits, and takes both again."""

    def __init__(
        self,
        trainer: Trainer,
        progress: TrainingProgress,
        lease: Lease,
        control: Control,
        writer: BackgroundWriter,
        memory_limit: MemoryLimit | None = None,
    ) -> None:
        self.trainer, self.progress, self.lease, self.control, self.writer = trainer, progress, lease, control, writer
        self.memory_limit = memory_limit or MemoryLimit(trainer.device)

    def pause(self, reason: str = "user", wait: Callable[[], object] = lambda: None) -> Iterator[Event]:
        """Gives everything back, calls `wait`, waits as long as the user wants, and takes everything again as it was.

        Yields Paused with `reason`, then Resumed; nothing is taken again, and no Resumed comes, when the run is stopped meanwhile.
        """
        yield from self.writer.finish()
        self.trainer.release()
        collect_garbage()
        self.memory_limit.lift()
        self.lease.pause()
        yield Paused(self.progress.step, reason)
        wait()
        while True:
            self.control.wait_while_paused()
            if self.control.stopping:  # the host stays with its user: what is saved now does not need it
                return
            try:
                source = self.lease.resume()
            except HostBusy as busy:
                yield Warned(message_with_fix(busy))
                self.control.command("pause")
                continue
            self.memory_limit.set()
            try:
                self.trainer.rebuild(source)
            except OutOfMemory:
                self.trainer.release()
                self.memory_limit.lift()
                self.lease.pause()
                yield Warned(NOT_ENOUGH)
                self.control.command("pause")
            else:
                yield Resumed(self.progress.step)
                return

    def let_host_in(self) -> Iterator[Event]:
        """Between two steps or previews: lets a waiting generation of the host through, and follows a model that it read anew."""
        self.lease.let_one_through(self._make_room)
        self.memory_limit.set()
        yield from self.follow_source()

    def _make_room(self) -> None:
        self.trainer.drop_graphs()
        self.memory_limit.lift()

    def follow_source(self) -> Iterator[Event]:
        """Attaches to the model that the lease has now; where that does not fit into memory any more, the run pauses."""
        if self.lease.source is self.trainer.source:
            return
        try:
            self.trainer.rebuild(self.lease.source)
        except OutOfMemory:
            yield Warned(NOT_ENOUGH)
            self.control.command("pause")
            yield from self.pause()

    @property
    def is_rest_due(self) -> bool:
        """Whether the graphics card is to rest after this epoch."""
        every, seconds = self._rest_options()
        return bool(every and seconds and self.progress.epoch % every == 0 and not self.progress.is_done and not self.control.stopping)

    def rest(self) -> Iterator[Event]:
        """A pause of as many seconds as the config gives the graphics card; "resume" or "stop" ends it."""
        _, seconds = self._rest_options()
        return self.pause("rest", lambda: self.control.rest(seconds))

    def wait_for_disk(self, folder: Path, megabytes: float) -> Iterator[Event]:
        """A full disk loses nothing: the run waits until `folder` has room for a file of this size, or somebody stops it."""
        while (missing := missing_mb(folder, megabytes)) and not self.control.stopping:
            yield Warned(
                say("The disk of {folder} lacks {mb} MB: the run waits until there is room.", folder=str(folder), mb=round(missing)),
                "save.output_dir",
            )
            yield from self.pause("disk", lambda: self._wait_until(lambda: not missing_mb(folder, megabytes)))

    def wait_for_writer(self) -> Iterator[Event]:
        """While a file does not fit on the disk, the run waits; the writer tries again until it does, or somebody stops the run."""
        while (blocked := self.writer.blocked) is not None and not self.control.stopping:
            yield Warned(say("{message} The run waits until there is room.", message=blocked.problems[0].message), "save.output_dir")
            yield from self.pause("disk", lambda: self._wait_until(lambda: self.writer.blocked is None))

    def finish_writing(self) -> Iterator[Event]:
        """Waits until everything is written, also for room on the disk. Raises the error of a file that could not be written."""
        yield from self.writer.finish()
        while self.writer.blocked is not None and not self.control.stopping:
            yield from self.wait_for_writer()
            yield from self.writer.finish()
        yield from self.writer.finish()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self.control.rest(DISK_POLL_SECONDS):
            pass

    def _rest_options(self) -> tuple[int, float]:
        """After how many epochs, and for how many seconds."""
        steps = self.trainer.config.steps
        return steps.pause_after_n_epochs, steps.pause_seconds
