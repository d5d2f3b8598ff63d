"""Reading events.jsonl while another thread or process writes it, from any event number on without rereading the file."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import attrs

from lora_trainer.events import Event, to_json
from lora_trainer.jobs.run_files import is_flag, is_list, is_mapping, is_number, is_text, is_whole, optional

Check = Callable[[Any], bool]
EVENT_TYPES = {kind.__name__.lower(): kind for kind in Event.__args__}
DAMAGED = "damaged"
"""Name of the event that stands for a line that cannot be read."""
STRIDE = 512
TAIL_BYTES = 1 << 16


class EventsLog:
    """Reader of one events.jsonl. Line n holds event n; a last line without a newline (a killed process) is ignored.

    Remembers the offset of every 512th line, so that reading from a long file costs only what is returned.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._offsets = [0]
        self._lines = 0
        self._end = 0

    def read(self, after: int = 0, limit: int = 0) -> list[dict[str, Any]]:
        """Events with n > after, at most `limit` (0: all); [] if there is no file. A damaged line is an event called "damaged"."""
        with self._lock:
            if not self._index_new_lines() or after >= self._lines:
                return []
            first = max(after, 0)
            with self.path.open("rb") as file:
                file.seek(self._offsets[first // STRIDE])
                for _ in range(first % STRIDE):
                    file.readline()
                count = min(self._lines - first, limit or self._lines)
                lines = [file.readline() for _ in range(count)]
        events = [parse_event(line) for line in lines]
        return [event if event["event"] != DAMAGED else event | {"n": n} for n, event in enumerate(events, start=first + 1)]

    def count(self) -> int:
        """The number of events."""
        with self._lock:
            return self._lines if self._index_new_lines() else 0

    def _index_new_lines(self) -> bool:
        """Indexes the lines added since the last call; starts again if the file was replaced by a shorter one. False without a file."""
        try:
            stat = self.path.stat()
            if not os.access(self.path, os.R_OK) or not S_ISREG(stat.st_mode):
                raise FileNotFoundError
            size = stat.st_size
        except OSError:
            self._offsets, self._lines, self._end = [0], 0, 0
            return False
        if size < self._end:
            self._offsets, self._lines, self._end = [0], 0, 0
        if size > self._end:
            with self.path.open("rb") as file:
                file.seek(self._end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._end += len(line)
                    self._lines += 1
                    if self._lines % STRIDE == 0:
                        self._offsets.append(self._end)
        return True


def truncate_partial_line(path: Path) -> None:
    """Removes a partial line that a killed process left at the end, so that another process can append."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        start = end
        while start:
            start = max(0, start - TAIL_BYTES)
            file.seek(start)
            newline = file.read(min(TAIL_BYTES, end - start)).rfind(b"\n")
            if newline >= 0:
                start += newline + 1
                break
        file.truncate(start)


def last_events(path: Path, size: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The events of the complete lines in the last `size` bytes, at least the last one; [] if there are none. Without damaged lines."""
    return [event for event in _read_tail(path, size) if event["event"] != DAMAGED]


def _read_tail(path: Path, size: int) -> list[dict[str, Any]]:
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = file.seek(max(0, end - size))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    if start:
        lines = lines[1:]
        if not lines:
            return _read_tail(path, size * 8)
    return [parse_event(line) for line in lines]


def damaged_lines(path: Path) -> int:
    """How many of the lines that `last_events` reads are damaged."""
    return sum(event["event"] == DAMAGED for event in _read_tail(path, TAIL_BYTES))


def parse_event(line: bytes) -> dict[str, Any]:
    """The event of a line; {"event": "damaged"} for a line that holds none (a power cut, another program)."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {"event": DAMAGED}
    return event if isinstance(event, dict) and _is_intact(event) else {"event": DAMAGED}


def _is_intact(event: Mapping[str, Any]) -> bool:
    """Whether the values that readers rely on are there, and each known value is of its kind."""
    name = event.get("event")
    if not isinstance(name, str):
        return False
    event_type = EVENT_TYPES.get(name)
    if event_type is None:  # of a newer version
        return True
    return all(key in event for key in _REQUIRED.get(name, ())) and all(
        check(event[key]) for key, check in _checks_of(event_type) if key in event
    )


@lru_cache(maxsize=32)
def _checks_of(event_type: type) -> tuple[tuple[str, Check], ...]:
    declared = event_type.__annotations__  # as written: attrs.resolve_types, which cattrs calls, puts classes into the fields themselves
    return tuple((name, _CHECKS[kind]) for name, kind in declared.items() if kind in _CHECKS)


_CHECKS: Mapping[str, Check] = {
    "int": is_whole,
    "float": optional(is_number),  # null stands for NaN and infinity
    "float | None": optional(is_number),
    "str": is_text,
    "bool": is_flag,
    "Mapping[str, Any]": is_mapping,
    "Mapping[str, float]": is_mapping,
    "Sequence[str]": is_list,
    "Sequence[Mapping[str, Any]]": is_list,
    "Message": lambda value: isinstance(value, (str, dict)),
}
"""By the type that a field of an event is declared with."""
_REQUIRED = {
    "started": ("plan",),
    "phase": ("name",),
    "stepped": ("step",),
    "sampled": ("path",),
    "validated": ("step",),
    "saved": ("path", "step"),
    "rendered": ("path",),
    "warned": ("message",),
    "changed": ("path", "new", "step"),
    "resumed": ("step",),
    "failed": ("problems",),
}
"""Values that readers take for granted; all others have a default."""


@attrs.frozen
class EventRecord:
    """An event with its number `n`, from 1, and its `time` in seconds since 1970."""

    n: int
    time: float
    event: Event

    def to_json(self, folder: Path) -> dict[str, Any]:
        """The line of events.jsonl. Paths of pictures in `folder` are relative to it, so that a run can be moved."""
        line = {"n": self.n, "time": round(self.time, 3), **{key: finite_or_none(value) for key, value in to_json(self.event).items()}}
        if line["event"] in ("sampled", "rendered"):
            line["path"] = relative_to_folder(folder, str(line["path"]))
        return line


def finite_or_none(value: Any) -> Any:
    """The value, or None for a float that JSON does not support (NaN, infinity)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def relative_to_folder(folder: Path, path: str) -> str:
    """`path` relative to `folder` with forward slashes, or unchanged if it is outside."""
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return path
