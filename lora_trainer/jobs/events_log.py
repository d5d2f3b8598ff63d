"""Reading events.jsonl while somebody else writes it: from any number on, without going through what came before."""

from __future__ import annotations

import json
import math
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.events import Event, to_json

STRIDE = 512
TAIL = 1 << 16


class EventsLog:
    """Read side of one events.jsonl. Line n holds event n; a last line without its end (a killed process) is not there yet.

    Remembers where every 512th line begins, so that `after` of a long file costs as much as what it returns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._marks = [0]
        self._lines = 0
        self._end = 0

    def read(self, after: int = 0, limit: int = 0) -> list[dict[str, Any]]:
        """Events with n > after, at most `limit` (0: all); [] when there is no file."""
        with self._lock:
            if not self._catch_up() or after >= self._lines:
                return []
            first = max(after, 0)
            with self.path.open("rb") as file:
                file.seek(self._marks[first // STRIDE])
                for _ in range(first % STRIDE):
                    file.readline()
                count = min(self._lines - first, limit or self._lines)
                lines = [file.readline() for _ in range(count)]
        return _parsed(lines)

    def count(self) -> int:
        """How many events there are."""
        with self._lock:
            return self._lines if self._catch_up() else 0

    def _catch_up(self) -> bool:
        """Counts the lines that came since the last time; starts anew when the file was replaced by a shorter one."""
        try:
            size = self.path.stat().st_size
        except OSError:
            self._marks, self._lines, self._end = [0], 0, 0
            return False
        if size < self._end:
            self._marks, self._lines, self._end = [0], 0, 0
        if size > self._end:
            with self.path.open("rb") as file:
                file.seek(self._end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._end += len(line)
                    self._lines += 1
                    if self._lines % STRIDE == 0:
                        self._marks.append(self._end)
        return True


def mend(path: Path) -> None:
    """Takes away half a line that a killed process left at the end, so that another one can write on."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        start = end
        while start:
            start = max(0, start - TAIL)
            file.seek(start)
            found = file.read(min(TAIL, end - start)).rfind(b"\n")
            if found >= 0:
                start += found + 1
                break
        file.truncate(start)


def last_events(path: Path, size: int = TAIL) -> list[dict[str, Any]]:
    """The whole lines in the last `size` bytes of the file, at least one where there is one; [] when there is none."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = file.seek(max(0, end - size))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    if start:
        lines = lines[1:]
        if not lines:
            return last_events(path, size * 8)
    return _parsed(lines)


def _parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    """Events of the lines; what a power cut left of one is passed over."""
    events = []
    for line in lines:
        with suppress(ValueError):
            events.append(json.loads(line))
    return events


@attrs.frozen
class EventRecord:
    """`n` counts a run's events from 1; `time` is seconds since 1970."""

    n: int
    time: float
    event: Event

    def to_json(self, folder: Path) -> dict[str, Any]:
        """The line of events.jsonl. Pictures inside `folder` are named relative to it, so that a run can be moved."""
        line = {"n": self.n, "time": round(self.time, 3), **{key: finite(value) for key, value in to_json(self.event).items()}}
        if line["event"] in ("sampled", "rendered"):
            line["path"] = inside(folder, str(line["path"]))
        return line


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON does not know (NaN, infinity)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inside(folder: Path, path: str) -> str:
    """`path` relative to `folder` with forward slashes, or as it is when it lies elsewhere."""
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return path
