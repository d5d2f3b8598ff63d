"""How a user controls a run: commands come from any thread or process, the run reads them between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lora_trainer.files import file_lock
from lora_trainer.parsing import parse_json

COMMANDS = ("stop", "stop-discard", "pause", "resume", "save", "sample")
CHANGE = "change"
"""The command that precedes `section.name=value`, or a JSON object of options and values."""


class Control:
    """Commands of one run. `inbox` is the file that another process writes a command into (RUN/control).

    The run reads `stopping` and `pausing` between steps, pictures and sampler steps, and takes "save" and "sample"
    with `take`. Thread-safe.
    """

    def __init__(self, inbox: Path | None = None) -> None:
        self.inbox = inbox
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._requests: set[str] = set()
        self._changes: list[dict[str, Any]] = []
        self._resume = False
        self._stop = False
        self._save_on_stop = True
        self._pause = False

    def command(self, command: str) -> None:
        """Accepts one of COMMANDS. Raises ValueError for anything else."""
        if command not in COMMANDS:
            raise ValueError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
        with self._wake:
            if command in ("stop", "stop-discard"):
                self._stop, self._save_on_stop, self._pause = True, command == "stop", False
            elif command in ("pause", "resume"):
                self._pause = command == "pause" and not self._stop
                self._resume = command == "resume"
            else:
                self._requests.add(command)
            self._wake.notify_all()

    def change(self, values: Mapping[str, Any]) -> None:
        """Sets options (dotted path -> value; text is parsed as after --set) from the next step on."""
        with self._wake:
            self._changes.append(dict(values))
            self._wake.notify_all()

    def take_changes(self) -> list[dict[str, Any]]:
        """The changes requested since the last call."""
        self._read_inbox()
        with self._lock:
            changes, self._changes = self._changes, []
        return changes

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested."""
        self._read_inbox()
        return self._stop

    @property
    def save_on_stop(self) -> bool:
        """Whether a stop should save the weights first."""
        return self._save_on_stop

    @property
    def pausing(self) -> bool:
        """Whether a pause was requested."""
        self._read_inbox()
        return self._pause and not self._stop

    def take(self, command: str) -> bool:
        """Whether "save" or "sample" was requested since the last call; clears the request."""
        self._read_inbox()
        with self._lock:
            is_requested = command in self._requests
            self._requests.discard(command)
            return is_requested

    @property
    def local(self) -> Control:
        """The control of this process alone: itself, except where several processes synchronise their commands."""
        return self

    def sync(self) -> None:
        """Called between two steps: several processes take over the commands given so far. A single process has nothing to do."""

    def wait_while_paused(self, poll: float = 0.2) -> None:
        """Blocks until resumed or stopped; give back lock and device before the call."""
        while self.pausing:
            with self._wake:
                self._wake.wait(poll)

    def rest(self, seconds: float) -> bool:
        """Blocks for `seconds`; returns True as soon as "resume" or "stop" is requested. A pause requested meanwhile starts afterwards."""
        end, self._resume = time.monotonic() + seconds, False
        while not (self.stopping or self._resume):
            if (left := end - time.monotonic()) <= 0:
                return False
            with self._wake:
                self._wake.wait(min(left, 0.2))
        return True

    def keep_going(self) -> bool:
        """For a generator that holds nothing to give back: waits while paused, False when stopped."""
        self.wait_while_paused()
        return not self.stopping

    def _read_inbox(self) -> None:
        if self.inbox is None or not self.inbox.exists():
            return
        claimed = self.inbox.with_name(f".{self.inbox.name}.taken")
        try:
            with inbox_lock(self.inbox):
                self.inbox.replace(claimed)  # later commands go to a new file
                lines = claimed.read_text(encoding="utf-8", errors="replace").splitlines()
                claimed.unlink()
        except OSError:  # another process is just writing it: next time
            time.sleep(0.01)
            return
        for line in lines:
            command, _, rest = line.strip().partition(" ")
            if command in COMMANDS:
                self.command(command)
            elif command == CHANGE and (values := parse_change(rest)):
                self.change(values)


def lock_path(inbox: Path) -> Path:
    """The file that is locked while an inbox is written or emptied."""
    return inbox.with_name(f".{inbox.name}.lock")


@contextmanager
def inbox_lock(inbox: Path) -> Iterator[None]:
    """Inside, no other process writes or empties the inbox: of two commands at once none is lost, and none is done twice."""
    with ExitStack() as stack:
        with suppress(OSError):  # a file system without locks
            stack.enter_context(file_lock(lock_path(inbox)))
        yield


def parse_change(text: str) -> dict[str, Any]:
    """`section.name=value`, or a JSON object, as {path: value}; {} if it is neither."""
    if text.startswith("{"):
        try:
            values = parse_json(text)
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}
    path, equals, value = text.partition("=")
    return {path.strip(): value.strip()} if equals and path.strip() else {}
