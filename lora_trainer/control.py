"""How a user steers a running work: commands go in from any thread or process, the work looks between two steps."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMANDS = ("stop", "stop-discard", "pause", "resume", "save", "sample")
CHANGE = "change"
"""Stands in front of `section.name=value`, or of a JSON object of options and values."""


class Control:
    """Commands of one run. `inbox` is the file that another process writes a command into (RUN/control).

    The work asks `stopping` and `pausing` between steps, pictures and sampler steps, and takes "save" and "sample"
    with `take`. Thread-safe.
    """

    def __init__(self, inbox: Path | None = None) -> None:
        self.inbox = inbox
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._asked: set[str] = set()
        self._changes: list[dict[str, Any]] = []
        self._rested = False
        self._stop = False
        self._save_on_stop = True
        self._pause = False

    def command(self, word: str) -> None:
        """Takes one of COMMANDS. Raises ValueError for another word."""
        if word not in COMMANDS:
            raise ValueError(f"unknown command {word!r}; known: {', '.join(COMMANDS)}")
        with self._wake:
            if word in ("stop", "stop-discard"):
                self._stop, self._save_on_stop, self._pause = True, word == "stop", False
            elif word in ("pause", "resume"):
                self._pause = word == "pause" and not self._stop
                self._rested = word == "resume"
            else:
                self._asked.add(word)
            self._wake.notify_all()

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Options (dotted path -> value; a text is read as after --set) that are to have these values from the next step on."""
        with self._wake:
            self._changes.append(dict(wanted))
            self._wake.notify_all()

    def take_changes(self) -> list[dict[str, Any]]:
        """What was asked to be changed since the last call."""
        self._read_inbox()
        with self._lock:
            asked, self._changes = self._changes, []
        return asked

    @property
    def stopping(self) -> bool:
        """Whether the user asked to stop."""
        self._read_inbox()
        return self._stop

    @property
    def save_on_stop(self) -> bool:
        """Whether a stop should save the weights first."""
        return self._save_on_stop

    @property
    def pausing(self) -> bool:
        """Whether the user asked to pause."""
        self._read_inbox()
        return self._pause and not self._stop

    def take(self, word: str) -> bool:
        """Whether "save" or "sample" was asked since the last call."""
        self._read_inbox()
        with self._lock:
            asked = word in self._asked
            self._asked.discard(word)
            return asked

    @property
    def now(self) -> Control:
        """What a work of this process alone asks while it goes on; another only where several processes agree on commands."""
        return self

    def agree(self) -> None:
        """The place between two steps where several processes take over what was asked by then; nothing to do for one."""

    def wait_while_paused(self, poll: float = 0.2) -> None:
        """Blocks until resumed or stopped; call it with lock and device given back."""
        while self.pausing:
            with self._wake:
                self._wake.wait(poll)

    def rest(self, seconds: float) -> bool:
        """Blocks for so long; True as soon as "resume" or "stop" is asked. A pause that is asked meanwhile goes on after it."""
        end, self._rested = time.monotonic() + seconds, False
        while not (self.stopping or self._rested):
            if (left := end - time.monotonic()) <= 0:
                return False
            with self._wake:
                self._wake.wait(min(left, 0.2))
        return True

    def keep_going(self) -> bool:
        """For a work that has nothing to give back: waits while paused, False when stopped."""
        self.wait_while_paused()
        return not self.stopping

    def _read_inbox(self) -> None:
        if self.inbox is None or not self.inbox.exists():
            return
        taken = self.inbox.with_name(f".{self.inbox.name}.taken")
        try:
            self.inbox.replace(taken)  # what is written from now on is the next letter
            lines = taken.read_text(encoding="utf-8").splitlines()
            taken.unlink()
        except OSError:  # another process is just writing it: next time
            time.sleep(0.01)
            return
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word in COMMANDS:
                self.command(word)
            elif word == CHANGE and (wanted := change_of(rest)):
                self.change(wanted)


def change_of(text: str) -> dict[str, Any]:
    """`section.name=value`, or a JSON object, as {path: value}; {} where it is neither."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}
    path, equals, value = text.partition("=")
    return {path.strip(): value.strip()} if equals and path.strip() else {}
