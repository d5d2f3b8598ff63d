"""A job run in the foreground: progress on stderr, Ctrl-C once to stop and save, twice to abort."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lora_trainer.cli.console import DONE, FAILED, STOPPED, Console
from lora_trainer.events import Failed, Finished, Phase, Progress, Rendered, Sampled, Saved, Started, Stepped, Stopped, Validated, Warned
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs.events_log import EventRecord
from lora_trainer.jobs.process_rank import process_rank
from lora_trainer.jobs.status import RunStatus, translate_problem
from lora_trainer.messages import Message, say

EXIT = {"finished": DONE, "stopped": STOPPED, "failed": FAILED}
LOG_SECONDS = 5.0
"""Seconds between two progress lines if stderr is not a terminal."""
FORWARDED_SECONDS = 2.0
"""Seconds within which the launcher of several processes forwards the same Ctrl-C to each."""
PHASES = {
    "planning": say("Planning"),
    "caching": say("Reading pictures"),
    "encoding": say("Reading captions"),
    "training": say("Training"),
    "sampling": say("Drawing previews"),
    "validating": say("Validating"),
    "saving": say("Saving files"),
    "rendering": say("Drawing the grid"),
    "ranking": say("Ranking"),
}


def run_job(job: Job, console: Console) -> RunStatus:
    """Runs the job in this thread, to its end. A second Ctrl-C raises KeyboardInterrupt, with everything given back."""
    with _stopping_on_signals(job, console):
        return job.run()


def exit_status(status: RunStatus) -> int:
    """Exit status of a run: 0 finished, 130 stopped, 1 failed."""
    return EXIT[status.outcome or "failed"]


def print_outcome(job: Job, console: Console) -> None:
    """Prints the outcome on stderr; a failure with its remedy."""
    status = job.status
    if status.outcome == "failed":
        for problem in status.problems:
            translated = translate_problem(problem, console.language)
            console.note(f"{translated['path']}: {translated['message']} {translated['fix']}".lstrip(": ").rstrip())
        if job.folder.report_file.is_file():
            console.note(say("The full report: {path}", path=str(job.folder.report_file)))
    elif status.outcome == "stopped":
        console.note(say("Stopped at step {step}.", step=status.step))
    if status.best:
        best = {**status.best, "loss": f"{status.best['loss']:.4f}"}
        console.note(say("The validation loss is lowest at step {step}, epoch {epoch}: {loss}", **best))


@contextmanager
def _stopping_on_signals(job: Job, console: Console) -> Iterator[None]:
    presses: list[float] = []
    is_single = process_rank().is_single

    def pressed(number: int, frame: Any) -> None:
        now = time.monotonic()
        if presses and not is_single and now - presses[0] < FORWARDED_SECONDS:
            return
        presses.append(now)
        if len(presses) > 1:
            raise KeyboardInterrupt
        # in a thread: the interrupted one may hold the lock that a command takes
        threading.Thread(target=job.command, args=("stop",), daemon=True).start()
        with suppress(OSError):  # past the buffered stream, which the interrupted code may be writing to
            os.write(2, f"\n{console.translate(say('Stopping and saving. Once more to abort.'))}\n".encode("utf-8", "replace"))

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.signal(number, pressed) for number in signals}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def format_speed(seconds: float) -> str:
    """Steps per second, or seconds per step if a step takes longer than one: "3.21 it/s", "1.74 s/it"."""
    return f"{1 / seconds:.2f} it/s" if 0 < seconds <= 1 else f"{seconds:.2f} s/it"


def format_duration(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss: 4:05, 2:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressPrinter:
    """A sink that prints a run's progress to a terminal or a log file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.is_terminal = sys.stderr.isatty()
        self.status = RunStatus("", "")
        self._printed_at = 0.0
        self._width = 0

    def __call__(self, record: EventRecord) -> None:
        event = record.event
        self.status = self.status.after(event, record.time)
        if isinstance(event, (Stepped, Progress, Rendered)):
            self._print_progress(event)
        elif isinstance(event, (Finished, Stopped, Failed)):
            self._clear()
        elif (text := self._message(event)) is not None:
            self._clear()
            self.console.note(text)

    def _message(self, event: Any) -> Message | str | None:
        if isinstance(event, Started):
            plan = event.plan
            return say(
                "{images} pictures, {steps} steps an epoch, {total} steps in all, on {device}",
                images=plan.get("images", 0),
                steps=plan.get("steps_per_epoch", 0),
                total=plan.get("total_steps", 0),
                device=event.device,
            )
        if isinstance(event, Phase) and event.name not in ("saving", "validating", "sampling", "training"):
            return PHASES.get(event.name, event.name)
        if isinstance(event, Validated):
            loss = f"{event.loss:.4f}"
            if event.best:
                return say("step {step}: validation loss {loss}, the lowest so far", step=event.step, loss=loss)
            return say("step {step}: validation loss {loss}", step=event.step, loss=loss)
        if isinstance(event, Saved):
            return say("step {step}: saved {path}", step=event.step, path=event.path)
        if isinstance(event, Sampled):
            return say("step {step}: preview {path}", step=event.step, path=event.path)
        if isinstance(event, Warned):
            return say("Note: {message}", message=event.message)
        return None

    def _print_progress(self, event: Stepped | Progress | Rendered) -> None:
        now = time.monotonic()
        is_single_item = isinstance(event, Progress) and self.status.total <= 1
        if is_single_item or now - self._printed_at < (0.2 if self.is_terminal else LOG_SECONDS):
            return
        self._printed_at = now
        text = self.console.translate(self._progress_message(event))
        if not self.is_terminal:
            self.console.note(text)
            return
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def _progress_message(self, event: Stepped | Progress | Rendered) -> Message:
        status = self.status
        if isinstance(event, Stepped):
            return say(
                "step {step} of {total}, epoch {epoch} of {epochs}: loss {loss}, {pace}, {left} left",
                step=event.step,
                total=status.total_steps,
                epoch=event.epoch,
                epochs=max(status.epochs, event.epoch),
                loss=f"{event.loss_average:.4f}",
                pace=format_speed(status.speed or event.seconds),
                left=format_duration(status.seconds_left or 0.0),
            )
        phase = PHASES.get(status.phase, say("Working"))
        return say("{phase}: {done} of {total}", phase=phase, done=status.done, total=status.total)

    def _clear(self) -> None:
        if self.is_terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
