"""Runs of another process in the same runs folder: from the command line, or started by a WebUI that has been closed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import RunView
from lora_trainer.jobs.launcher import event_from_json
from lora_trainer.jobs.status import RunStatus


class OtherProcessRun(RunView):
    """Follows a run of another process by its events.jsonl; `poll` updates the status."""

    def __init__(self, folder: RunFolder) -> None:
        info = folder.info()
        self.folder = folder
        self.requested = ""
        self.status = RunStatus(id=folder.id, name=info["name"], kind=info["kind"], of=info["of"])
        self._events_read = 0

    def snapshot(self, language: str = "en") -> dict[str, Any]:
        """As a Job's, with "own_process"."""
        return super().snapshot(language) | {"own_process": True}

    def poll(self) -> bool:
        """Reads the new events; False once its process is gone without a final event."""
        for line in self.folder.events(self._events_read):
            self._events_read += 1
            if (event := event_from_json(line)) is not None:
                self.status = self.status.after(event, float(line.get("time", 0.0)))
        return self.status.ended or self.folder.is_alive()


def find_other_run(runs_dir: Path) -> OtherProcessRun | None:
    """The latest run that another process is still running, or None."""
    claimed = sorted(runs_dir.glob("*/pid"), key=_last_modified, reverse=True)  # a run that has ended has no pid file
    folders = (RunFolder(path.parent) for path in claimed)
    return next((OtherProcessRun(folder) for folder in folders if folder.is_alive()), None)


def _last_modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it has just ended
        return 0.0
