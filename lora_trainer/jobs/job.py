"""One run: its generator is iterated in one thread, each event is recorded, and there is always a final event."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import attrs

from lora_trainer.control import Control
from lora_trainer.errors import Problem, TrainerError
from lora_trainer.events import Event, Failed, Finished, Stopped, Warned
from lora_trainer.files import is_disk_full
from lora_trainer.jobs.claims import Claim
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.jobs.sinks import ReportFile, Sink, standard_sinks
from lora_trainer.jobs.status import RunStatus
from lora_trainer.messages import Message, say

Work = Callable[[Control], Generator[Event, None, None]]
END_EVENTS = (Finished, Stopped, Failed)
TRACEBACK_LINES = 40


class RunView:
    """The state of a run that anyone may read at any time: its status, and the pending command in `requested`."""

    status: RunStatus
    requested: str

    @property
    def running(self) -> bool:
        """Whether it has not ended; true from creation on."""
        return not self.status.ended

    def snapshot(self, language: str = "en") -> dict[str, Any]:
        """The status as plain values; "stopping" as soon as a stop is requested."""
        plain = self.status.to_json(language)
        requested = self.requested
        plain["asked"] = "" if self.status.ended else requested
        if self.running and requested in ("stop", "stop-discard"):
            plain["state"] = "stopping"
        return plain

    def acknowledge(self, event: Event) -> None:
        """Clears the pending command if `event` shows that it was carried out."""
        if type(event).__name__ in _ACKNOWLEDGED_BY.get(self.requested, ()):
            self.requested = ""


class Job(RunView):
    """Runs `work` in its folder. `status` is replaced as a whole with each event, so any thread may read it without a lock."""

    def __init__(
        self, work: Work, folder: RunFolder, sinks: Sequence[Sink] = (), *, control: Control | None = None, claim: Claim | None = None
    ) -> None:
        """`claim`: the caller's claim on the folder; None: it is claimed now. Raises HostBusy while another process runs it."""
        self._claim = claim or folder.claim()
        try:
            self._prepare(work, folder, sinks, control)
        except BaseException:
            folder.release(self._claim)
            raise

    def _prepare(self, work: Work, folder: RunFolder, sinks: Sequence[Sink], control: Control | None) -> None:
        info = folder.info()
        self.work = work
        self.folder = folder
        self.control = control or Control(folder.control_file)
        self.status = RunStatus(id=folder.id, name=info["name"], kind=info["kind"], of=info["of"])
        self.error: BaseException | None = None
        self.requested = ""
        self._sinks: list[Sink] = [*standard_sinks(folder), *sinks]
        self.status = attrs.evolve(self.status, n=folder.log.count())  # a resumed run appends
        self._thread: threading.Thread | None = None

    def command(self, command: str) -> None:
        """Passes a command to the work. Raises ValueError for an unknown command."""
        self.control.command(command)
        self.requested = command

    def change(self, values: Mapping[str, Any]) -> None:
        """Sets options (dotted path -> value) from the next step on."""
        self.control.change(values)

    def start(self) -> None:
        """Runs in its own thread."""
        self._thread = threading.Thread(target=self.run, name=f"lora-trainer {self.folder.id}", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end; whether it was reached."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def run(self) -> RunStatus:
        """Runs in this thread, to the end; errors of the work become a Failed event. A KeyboardInterrupt is recorded and re-raised."""
        try:
            self._run()
        finally:
            self.folder.release(self._claim)
        return self.status

    def _run(self) -> None:
        try:
            end_event = self._iterate()
        except KeyboardInterrupt:
            self._end(Stopped(self.status.step))
            raise
        except Exception as error:
            self.error = error
            self._attach_traceback(error)
            end_event = Failed(self.status.step, [problem_json(problem) for problem in problems_of(error, in_run=self._writes_report)])
        self._end(end_event)

    def _iterate(self) -> Event:
        """Records every event but the final one, which holds only once the generator has ended and given everything back."""
        end_event: Event | None = None
        with closing(self.work(self.control)) as events:
            for event in events:
                if isinstance(event, END_EVENTS):
                    end_event = event
                else:
                    self._record(event)
        return end_event or (Stopped(self.status.step) if self.control.stopping else Finished(self.status.step))

    def _record(self, event: Event) -> None:
        now = time.time()
        self.acknowledge(event)
        self.status = self.status.after(event, now)
        for message in self._deliver(EventRecord(self.status.n, now, event)):
            self._record(Warned(message))

    def _end(self, event: Event) -> None:
        """Records the final event; `status` shows the end only once everything is written and closed."""
        now = time.time()
        status = self.status.after(event, now)
        for message in self._deliver(EventRecord(status.n, now, event)):
            status = attrs.evolve(status, warnings=status.warnings + 1, warning=message)
        for sink in self._sinks:
            with suppress(Exception):  # the run has ended all the same
                sink.close() if hasattr(sink, "close") else None
        self.folder.release(self._claim)
        self.status = status

    def _deliver(self, record: EventRecord) -> list[Message]:
        """Passes the record to every sink; a sink that raises is dropped. Returns a message for each one dropped."""
        messages = []
        for sink in tuple(self._sinks):
            try:
                sink(record)
            except Exception as error:
                if is_disk_full(error):  # it holds what it has to write, and does so with a later event
                    continue
                self._sinks.remove(sink)
                reason = str(error) or type(error).__name__
                messages.append(say("{sink} is no longer written in this run: {reason}", sink=type(sink).__name__, reason=reason))
        return messages

    @property
    def _writes_report(self) -> bool:
        return any(isinstance(sink, ReportFile) for sink in self._sinks)

    def _attach_traceback(self, error: Exception) -> None:
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip().split("\n")
        for sink in self._sinks:
            if isinstance(sink, ReportFile):
                sink.traceback = lines[-TRACEBACK_LINES:]


_ACKNOWLEDGED_BY = {"pause": ("Paused",), "resume": ("Resumed", "Stepped"), "save": ("Saved",), "sample": ("Sampled",)}


def problems_of(error: BaseException, *, in_run: bool = True) -> tuple[Problem, ...]:
    """The problems of any exception: what went wrong, and the remedy. `in_run`: a run's report.txt says more."""
    if isinstance(error, TrainerError):
        return error.problems
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        fix = say("Take a smaller training size or fewer pictures per step, or turn on gradient checkpointing.")
        return (Problem("", say("there is not enough memory: {reason}", reason=_first_line(error)), fix),)
    if isinstance(error, OSError) and is_disk_full(error):
        return (Problem(str(error.filename or ""), say("the disk is full."), say("Free some disk space, then start again.")),)
    if isinstance(error, OSError) and error.filename:
        message = say("{path}: {reason}", path=str(error.filename), reason=error.strerror or str(error))
        return (Problem(str(error.filename), message, say("Check that the file is there and may be read and written.")),)
    message = say("{kind}: {reason}", kind=type(error).__name__, reason=_first_line(error))
    if in_run:
        return (Problem("", message, say("The last lines of report.txt in the run's folder say where it happened.")),)
    return (Problem("", message, say("This is a fault of the trainer: please report it, with what was printed above.")),)


def problem_json(problem: Problem) -> dict[str, Any]:
    """A problem for a Failed event: in English, with the templates under "words" for other languages."""
    return problem.to_json() | {"words": {"message": problem.message.to_json(), "fix": problem.fix.to_json()}}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
