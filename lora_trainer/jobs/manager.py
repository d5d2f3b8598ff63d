"""The run of this process: one at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_trainer.errors import HostBusy
from lora_trainer.jobs.claims import Claim
from lora_trainer.jobs.folder import RunFolder, history
from lora_trainer.jobs.job import Job, Work
from lora_trainer.jobs.launcher import SubprocessRun
from lora_trainer.jobs.sinks import Sink


class JobManager:
    """Starts runs, one at a time, and remembers the latest. Reading `current` and `latest` never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latest: Job | SubprocessRun | None = None

    @property
    def current(self) -> Job | SubprocessRun | None:
        """The run that is going on, or None."""
        latest = self.latest
        return latest if latest is not None and latest.running else None

    def require_idle(self) -> None:
        """Raises HostBusy, naming the run, if one is going on."""
        if (busy := self.current) is not None:
            raise HostBusy("the run {run} is still going on.", run=busy.status.name, path="run", fix="Stop it, or wait until it has ended.")

    def start(self, folder: RunFolder, work: Work, sinks: Sequence[Sink] = (), *, claim: Claim | None = None) -> Job:
        """Runs `work` in its own thread; `claim` as for a Job. Raises HostBusy, naming the run, if one is going on."""
        with self._lock:
            self.require_idle()
            job = Job(work, folder, sinks, claim=claim)
            self.latest = job
            job.start()
            return job

    def start_subprocess(self, run: SubprocessRun) -> SubprocessRun:
        """Starts the run in its own process. Raises HostBusy, naming the run, if one is going on, OSError if it cannot be started."""
        with self._lock:
            self.require_idle()
            run.start()
            self.latest = run
            return run

    def is_running(self, folder: RunFolder) -> bool:
        """Whether this process is running the run of that folder."""
        current = self.current
        return current is not None and current.folder.path == folder.path

    def history(self, runs_dir: Path, *, kinds: Sequence[str] = ("train",), language: str = "en") -> list[dict[str, Any]]:
        """Summaries of the runs in a folder, newest first."""
        running = "" if (current := self.current) is None else str(current.folder.path)
        return history(runs_dir, kinds=kinds, running=running, language=language)


MANAGER = JobManager()
"""The only one of this process: it outlives the page, and the WebUI's Reload UI."""
