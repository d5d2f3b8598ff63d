"""The status snapshot, cached: querying the host can take long (it may be loading a checkpoint), the response must not."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lora_trainer.api.responses import encode_json, localize
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.jobs import other_process
from lora_trainer.jobs.manager import JobManager

MAX_AGE_SECONDS = 2.0
FIRST_ANSWER_SECONDS = 0.25
WINDOW_SECONDS = 10.0
MEMORY_STEP_MB = 32  # smaller changes make no new version


class StatusCache:
    """The status snapshot. No public method waits for the host, the training thread or one of their locks."""

    def __init__(self, host: Host, manager: JobManager) -> None:
        self.host = host
        self.manager = manager
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer-host")
        self._pending: Future[None] | None = None
        self._refreshed_at = -MAX_AGE_SECONDS
        self._has_answer = False
        self._model: dict[str, Any] = {}
        self._memory: dict[str, Any] = {}
        self._windows: dict[str, float] = {}
        self._other_run: other_process.OtherProcessRun | None = None
        self._edits = 0

    def note_edit(self) -> None:
        """Pictures, captions or runs were changed through a route: every window that shows them reads them again."""
        self._edits += 1

    def refresh(self) -> Future[None] | None:
        """Queries the host in a thread when the last answer is old; returns the pending query, None when there is none."""
        is_pending = self._pending is not None and not self._pending.done()
        if not is_pending and time.monotonic() - self._refreshed_at >= MAX_AGE_SECONDS:
            self._refreshed_at = time.monotonic()
            self._pending = self._executor.submit(self._query_host)
        return self._pending if self._pending is not None and not self._pending.done() else None

    @property
    def has_answer(self) -> bool:
        """Whether a query of the host has completed."""
        return self._has_answer

    @property
    def model(self) -> dict[str, Any]:
        """The host's last model_info; {} before the first query."""
        return self._model

    @property
    def memory(self) -> dict[str, Any]:
        """The host's last memory figures; {} before the first query."""
        return self._memory

    def _query_host(self) -> None:
        try:
            self._model = self.host.model_info()
        except TrainerError as error:
            self._model = {"title": "", "trainable": False, "reason": error.problems[0].message}
        finally:
            self._has_answer = True
        self._memory = {key: _round_memory(value) for key, value in self.host.memory().items()}
        self._other_run = self._find_other_run()

    def _find_other_run(self) -> other_process.OtherProcessRun | None:
        """The run that another process trains, or trained last; None while this process trains."""
        if self.manager.current is not None:
            return None
        previous = self._other_run if self._other_run is not None and self._other_run.poll() else None
        if previous is not None and previous.running:
            return previous
        latest = other_process.find_other_run(self.host.paths().runs_dir)
        return latest if latest is not None and latest.poll() else previous

    def snapshot(self, language: str, client: str, seen: str) -> dict[str, Any]:
        """{"version", ...}; only {"version", "unchanged"} when `seen` is that version."""
        run = self.manager.current or self._other_run or self.manager.latest
        body = {
            "host": {"name": self.host.name, "version": self.host.version, "waiting": self.host.waiting()},
            "model": localize(self._model, language),
            "memory": self._memory,
            "windows": self._count_windows(client),
            "run": run.snapshot(language) if run is not None else None,
            "language": self.host.language(),
            "edits": self._edits,
        }
        version = hashlib.blake2b(encode_json(body), digest_size=8).hexdigest()
        return {"version": version, "unchanged": True} if seen == version else {"version": version, **body}

    def _count_windows(self, client: str) -> int:
        now = time.monotonic()
        if client:
            self._windows[client[:64]] = now
        self._windows = {name: at for name, at in self._windows.items() if now - at < WINDOW_SECONDS}
        return len(self._windows)


def _round_memory(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) // MEMORY_STEP_MB * MEMORY_STEP_MB
    return value
