"""One run: its generator is iterated in one thread, each event is noted, and however it ends there is a last event."""

from __future__ import annotations

import errno
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import attrs

from lora_trainer.control import Control
from lora_trainer.errors import Problem, TrainerError
from lora_trainer.events import Event, Failed, Finished, Stopped, Warned
from lora_trainer.jobs.events_log import EventRecord
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.sinks import ReportFile, Sink, standard_sinks
from lora_trainer.jobs.status import RunStatus
from lora_trainer.messages import Message, say

Work = Callable[[Control], Generator[Event, None, None]]
ENDING = (Finished, Stopped, Failed)
TRACEBACK_LINES = 40
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class Snapshots:
    """What everybody may ask of a run at any moment: its status, and what was asked of it."""

    status: RunStatus
    asked: str

    @property
    def running(self) -> bool:
        """Whether it has not ended; true from its making on."""
        return not self.status.ended

    def snapshot(self, language: str = "en") -> dict[str, Any]:
        """The status as plain values; "stopping" from the moment that a stop was asked."""
        plain = self.status.to_json(language)
        asked = self.asked
        plain["asked"] = "" if self.status.ended else asked
        if self.running and asked in ("stop", "stop-discard"):
            plain["state"] = "stopping"
        return plain

    def answered(self, event: Event) -> None:
        """What was asked is done once this event came of it."""
        if type(event).__name__ in _ANSWERS.get(self.asked, ()):
            self.asked = ""


class Job(Snapshots):
    """`work` in its folder. `status` is replaced as a whole with each event: read it from any thread, without waiting."""

    def __init__(self, work: Work, folder: RunFolder, sinks: Sequence[Sink] = (), *, control: Control | None = None) -> None:
        about = folder.about()
        self.work = work
        self.folder = folder
        self.control = control or Control(folder.control_file)
        self.status = RunStatus(id=folder.id, name=about["name"], kind=about["kind"], of=about["of"])
        self.error: BaseException | None = None
        self.asked = ""
        self._sinks: list[Sink] = [*standard_sinks(folder), *sinks]
        self.status = attrs.evolve(self.status, n=folder.log.count())  # a run that is resumed writes on
        self._thread: threading.Thread | None = None
        folder.claim()

    def command(self, word: str) -> None:
        """Hands a command to the work. Raises ValueError for an unknown word."""
        self.control.command(word)
        self.asked = word

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Options (dotted path -> value) that are to have these values from the next step on."""
        self.control.change(wanted)

    def start(self) -> None:
        """Runs in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name=f"lora-trainer {self.folder.id}", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end; whether it was reached."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.running

    def run(self) -> RunStatus:
        """Runs here, to the end; errors of the work become a Failed event. A KeyboardInterrupt is noted and goes on upwards."""
        try:
            last = self._iterate()
        except KeyboardInterrupt:
            self._end(Stopped(self.status.step))
            raise
        except Exception as error:
            self.error = error
            self._tell_report(error)
            last = Failed(self.status.step, [describe(problem) for problem in problems_of(error)])
        self._end(last)
        return self.status

    def _iterate(self) -> Event:
        """Notes every event but the last word, which is true only when the generator has ended and given everything back."""
        last: Event | None = None
        with closing(self.work(self.control)) as events:
            for event in events:
                if isinstance(event, ENDING):
                    last = event
                else:
                    self._note(event)
        return last or (Stopped(self.status.step) if self.control.stopping else Finished(self.status.step))

    def _note(self, event: Event) -> None:
        now = time.time()
        self.answered(event)
        self.status = self.status.after(event, now)
        for message in self._deliver(EventRecord(self.status.n, now, event)):
            self._note(Warned(message))

    def _end(self, event: Event) -> None:
        """Only when everything is written and closed does anybody see that the run ended."""
        now = time.time()
        status = self.status.after(event, now)
        for message in self._deliver(EventRecord(status.n, now, event)):
            status = attrs.evolve(status, warnings=status.warnings + 1, warning=message)
        for sink in self._sinks:
            if (close := getattr(sink, "close", None)) is not None:
                close()
        self.folder.release()
        self.status = status

    def _deliver(self, record: EventRecord) -> list[Message]:
        """Hands the record to every sink; one that raises is dropped, and what is to be said about it returned."""
        dropped = []
        for sink in tuple(self._sinks):
            try:
                sink(record)
            except Exception as error:
                self._sinks.remove(sink)
                reason = str(error) or type(error).__name__
                dropped.append(say("{sink} is not written any more in this run: {reason}", sink=type(sink).__name__, reason=reason))
        return dropped

    def _tell_report(self, error: Exception) -> None:
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip().split("\n")
        for sink in self._sinks:
            if isinstance(sink, ReportFile):
                sink.traceback = lines[-TRACEBACK_LINES:]


_ANSWERS = {"pause": ("Paused",), "resume": ("Resumed", "Stepped"), "save": ("Saved",), "sample": ("Sampled",)}


def problems_of(error: BaseException) -> tuple[Problem, ...]:
    """What went wrong and what helps, of any exception."""
    if isinstance(error, TrainerError):
        return error.problems
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        fix = say("Take a smaller training size or fewer pictures per step, or turn on gradient checkpointing.")
        return (Problem("", say("there is not enough memory: {reason}", reason=_first_line(error)), fix),)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return (Problem(str(error.filename or ""), say("the disk is full."), say("Free some disk space, then start again.")),)
    if isinstance(error, OSError) and error.filename:
        message = say("{path}: {reason}", path=str(error.filename), reason=error.strerror or str(error))
        return (Problem(str(error.filename), message, say("Check that the file is there and may be read and written.")),)
    message = say("{kind}: {reason}", kind=type(error).__name__, reason=_first_line(error))
    return (Problem("", message, say("The last lines of report.txt in the run's folder say where it happened.")),)


def describe(problem: Problem) -> dict[str, Any]:
    """A problem for a Failed event: in English, with the templates as "words" for other languages."""
    return problem.to_json() | {"words": {"message": problem.message.to_json(), "fix": problem.fix.to_json()}}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
