"""Runs that another process trains in the same runs folder: from the command line, or started by a WebUI that was closed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Snapshots
from lora_trainer.jobs.launcher import event_of
from lora_trainer.jobs.status import RunStatus


class OtherProcessRun(Snapshots):
    """Follows a run of another process by its events.jsonl; `look` carries the status on."""

    def __init__(self, folder: RunFolder) -> None:
        about = folder.about()
        self.folder = folder
        self.asked = ""
        self.status = RunStatus(id=folder.id, name=about["name"], kind=about["kind"], of=about["of"])
        self._read = 0

    def snapshot(self, language: str = "en") -> dict[str, Any]:
        """As a Job's, and that it is a process of its own."""
        return super().snapshot(language) | {"own_process": True}

    def look(self) -> bool:
        """Reads on; False once its process is gone without a last word."""
        for line in self.folder.events(self._read):
            self._read += 1
            if (event := event_of(line)) is not None:
                self.status = self.status.after(event, float(line.get("time", 0.0)))
        return self.status.ended or self.folder.alive()


def find(runs_dir: Path) -> OtherProcessRun | None:
    """The run that another process began last and still trains; None where there is none."""
    claimed = sorted(runs_dir.glob("*/pid"), key=_written, reverse=True)  # a run that ended has given its place back
    folders = (RunFolder(path.parent) for path in claimed)
    return next((OtherProcessRun(folder) for folder in folders if folder.alive()), None)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it ended just now
        return 0.0
