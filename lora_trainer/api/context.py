"""The context shared by all routes, and the checks of paths and run ids in requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.api.responses import Forbidden, NotFound
from lora_trainer.api.status_cache import StatusCache
from lora_trainer.api.threads import ToolJob, Workers
from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.host.base import Host
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.manager import JobManager

if TYPE_CHECKING:
    from lora_trainer.api.scan_cache import ScanCache

MAX_THUMBNAILS = 20_000
PATH_KINDS = ("folder", "file", "lora", "loras", "checkpoint", "vae")
PATH_OPTIONS = tuple(option.path for option in declared_options(TrainConfig) if option.option.kind in PATH_KINDS)
"""Options that hold a path on this computer."""


class ApiContext:
    """Host, job manager, caches and threads behind the routes of one app."""

    def __init__(self, host: Host, manager: JobManager) -> None:
        self.host = host
        self.manager = manager
        self.workers = Workers()
        self.status = StatusCache(host, manager)
        self.created_captions: set[Path] = set()
        self.received: dict[Path, tuple[int, int]] = {}
        """Uploaded file -> size and mtime_ns as it was stored: only such a file, unchanged, is taken back."""
        self.tool_jobs: dict[str, ToolJob] = {}
        self._runs: dict[Path, RunFolder] = {}
        self.workers.in_background(lambda: remove_old_thumbnails(host.paths().cache_dir / "thumbnails"))

    @cached_property
    def scans(self) -> ScanCache:
        """The scanned folders. Imported on first use, so that the host's start-up does not pay for it."""
        from lora_trainer.api.scan_cache import ScanCache

        return ScanCache(self.workers)

    def allowed_path(self, text: str, option: str = "path") -> Path:
        """The path in a request. Raises Forbidden outside the allowed folders, NotFound when it is empty."""
        if not text.strip() or "\0" in text:
            raise NotFound("no path is given.", path=option, fix="Choose a folder or a file.")
        path = Path(text).expanduser()
        if not self.host.paths().allows(path):
            raise Forbidden(
                "{place} lies outside the folders that may be used while other computers can reach this WebUI.",
                place=str(path),
                path=option,
                fix="Put it below {root}, or start the WebUI with --lora-trainer-allow-path.",
                root=str(self.host.paths().allowed_roots[0]),
            )
        return path

    def check_paths(self, mapping: Mapping[str, Any]) -> None:
        """Raises Forbidden when a path in a config lies outside the allowed folders; the host's own models are always allowed."""
        from lora_trainer.data.sources.blueprint import source_paths

        paths = self.host.paths()
        if not paths.allowed_roots:
            return
        sections = ((name, section) for name, section in mapping.items() if isinstance(section, Mapping))
        self.check_option_paths({f"{name}.{option}": value for name, section in sections for option, value in section.items()})
        for option, text in source_paths(data) if isinstance(data := mapping.get("data"), Mapping) else ():
            self.allowed_path(text, option)

    def check_option_paths(self, values: Mapping[str, Any]) -> None:
        """As check_paths, for single options (option's path -> value)."""
        for option in PATH_OPTIONS:
            value = values.get(option)
            for text in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(text, str) and text.strip() and not self._is_known_model(option, text):
                    self.allowed_path(text, option)

    def _is_known_model(self, option: str, text: str) -> bool:
        if not option.startswith("model."):
            return False
        if not any(separator in text for separator in "/\\"):
            return True  # a title, which the host looks up in its own lists
        known_paths = [checkpoint.path for checkpoint in self.host.checkpoints()] if option != "model.vae" else list(self.host.vaes())
        return Path(text) in known_paths

    def run_folder(self, run: str) -> RunFolder:
        """The folder of the run with this id. Raises NotFound when there is none, or when the id is not a plain name."""
        latest = self.manager.latest
        if latest is not None and latest.folder.id == run:
            return latest.folder
        path = self.host.paths().runs_dir / run
        is_plain_name = bool(run) and not any(separator in run for separator in "/\\:\0") and run not in (".", "..")
        if not is_plain_name or not (path / "run.json").is_file():
            raise NotFound("there is no run called {run}.", run=run, path="run", fix="Choose a run of the list.")
        return self._runs.setdefault(path, RunFolder(path))

    def forget(self, folder: RunFolder) -> None:
        """Drops a deleted folder from the cache."""
        self._runs.pop(folder.path, None)


def remove_old_thumbnails(folder: Path) -> None:
    """Deletes the oldest thumbnails above 20 000."""
    by_age = sorted((path.stat().st_mtime, path) for path in folder.rglob("*.jpg"))
    for _, path in by_age[: max(0, len(by_age) - MAX_THUMBNAILS)]:
        path.unlink(missing_ok=True)
