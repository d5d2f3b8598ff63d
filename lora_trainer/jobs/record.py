"""An event with its number and time, as it goes to the sinks and into events.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.events import Event, to_json


@attrs.frozen
class Record:
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
