"""Which run goes on in this process: one at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_trainer.errors import HostBusy
from lora_trainer.jobs.folder import RunFolder, runs_in
from lora_trainer.jobs.job import Job, Work
from lora_trainer.jobs.launcher import OwnProcess
from lora_trainer.jobs.sinks import Sink


class JobManager:
    """Starts runs, one at a time, and remembers the latest. Reading `current` and `latest` never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latest: Job | OwnProcess | None = None

    @property
    def current(self) -> Job | OwnProcess | None:
        """The run that goes on, or None."""
        latest = self.latest
        return latest if latest is not None and latest.running else None

    def require_idle(self) -> None:
        """Raises HostBusy, naming the run, while one goes on."""
        if (busy := self.current) is not None:
            raise HostBusy("the run {run} is still going on.", run=busy.status.name, path="run", fix="Stop it, or wait until it has ended.")

    def start(self, folder: RunFolder, work: Work, sinks: Sequence[Sink] = ()) -> Job:
        """Runs `work` in a thread of its own. Raises HostBusy, naming the run, while one goes on."""
        with self._lock:
            self.require_idle()
            job = Job(work, folder, sinks)
            self.latest = job
            job.start()
            return job

    def start_apart(self, run: OwnProcess) -> OwnProcess:
        """Runs it in a process of its own. Raises HostBusy, naming the run, while one goes on, OSError when it cannot be started."""
        with self._lock:
            self.require_idle()
            run.start()
            self.latest = run
            return run

    def runs(self, folder: RunFolder) -> bool:
        """Whether this process is running that folder."""
        current = self.current
        return current is not None and current.folder.path == folder.path

    def history(self, runs_dir: Path, *, kinds: Sequence[str] = ("train",)) -> list[dict[str, Any]]:
        """Summaries of the runs in a folder, newest first."""
        found = [folder for folder in runs_in(runs_dir) if folder.about()["kind"] in kinds]
        return [folder.summary(running=self.runs(folder)) for folder in found]


MANAGER = JobManager()
"""The process's own: it outlives the page, and the WebUI's Reload UI."""
