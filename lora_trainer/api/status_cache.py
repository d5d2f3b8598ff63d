"""What the header shows, kept ready: asking the host may take long (a checkpoint is being loaded), answering may not."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lora_trainer.api.responses import dump, worded
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import Host
from lora_trainer.jobs import other_process
from lora_trainer.jobs.manager import JobManager

FRESH_SECONDS = 2.0
FIRST_ANSWER = 0.25
WINDOW_SECONDS = 10.0
MEMORY_STEP = 32  # MB: smaller changes are nobody's news


class StatusCache:
    """The status snapshot. Nothing here waits for the host, the training thread or a lock of theirs."""

    def __init__(self, host: Host, manager: JobManager) -> None:
        self.host = host
        self.manager = manager
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="lora-trainer-host")
        self._asked: Future[None] | None = None
        self._asked_at = -FRESH_SECONDS
        self._answered = False
        self._model: dict[str, Any] = {}
        self._memory: dict[str, Any] = {}
        self._windows: dict[str, float] = {}
        self._elsewhere: other_process.OtherProcessRun | None = None

    def look(self) -> Future[None] | None:
        """Has the host asked again when the last answer is old; returns the question while it is open."""
        open_question = self._asked is not None and not self._asked.done()
        if not open_question and time.monotonic() - self._asked_at >= FRESH_SECONDS:
            self._asked_at = time.monotonic()
            self._asked = self._asker.submit(self._ask)
        return self._asked if self._asked is not None and not self._asked.done() else None

    @property
    def known(self) -> bool:
        """Whether the host was asked to the end once."""
        return self._answered

    @property
    def model(self) -> dict[str, Any]:
        """The host's last word on its model; {} before the first."""
        return self._model

    @property
    def memory(self) -> dict[str, Any]:
        """The host's last word on its memory; {} before the first."""
        return self._memory

    def _ask(self) -> None:
        try:
            self._model = self.host.model_info()
        except TrainerError as error:
            self._model = {"title": "", "trainable": False, "reason": error.problems[0].message}
        finally:
            self._answered = True
        self._memory = {key: _coarse(value) for key, value in self.host.memory().items()}
        self._elsewhere = self._look_elsewhere()

    def _look_elsewhere(self) -> other_process.OtherProcessRun | None:
        """The run that another process trains, or trained last, while this one trains none."""
        if self.manager.current is not None:
            return None
        known = self._elsewhere if self._elsewhere is not None and self._elsewhere.look() else None
        if known is not None and known.running:
            return known
        found = other_process.find(self.host.paths().runs_dir)
        return found if found is not None and found.look() else known

    def snapshot(self, language: str, client: str, seen: str) -> dict[str, Any]:
        """{"version", ...}; only {"version", "unchanged"} when `seen` is that version."""
        run = self.manager.current or self._elsewhere or self.manager.latest
        body = {
            "host": {"name": self.host.name, "version": self.host.version, "waiting": self.host.waiting()},
            "model": worded(self._model, language),
            "memory": self._memory,
            "windows": self._count_windows(client),
            "run": run.snapshot(language) if run is not None else None,
            "language": self.host.language(),
        }
        version = hashlib.blake2b(dump(body), digest_size=8).hexdigest()
        return {"version": version, "unchanged": True} if seen == version else {"version": version, **body}

    def _count_windows(self, client: str) -> int:
        now = time.monotonic()
        if client:
            self._windows[client[:64]] = now
        self._windows = {name: at for name, at in self._windows.items() if now - at < WINDOW_SECONDS}
        return len(self._windows)


def _coarse(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) // MEMORY_STEP * MEMORY_STEP
    return value
