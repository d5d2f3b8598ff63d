"""An event with its number and time, as it goes to the sinks and into events.jsonl."""

from __future__ import annotations

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
        line = {"n": self.n, "time": round(self.time, 3), **to_json(self.event)}
        if line["event"] in ("sampled", "rendered"):
            line["path"] = inside(folder, str(line["path"]))
        return line


def inside(folder: Path, path: str) -> str:
    """`path` relative to `folder` with forward slashes, or as it is when it lies elsewhere."""
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return path
