"""What all routes share, and the checks that each makes of a path or a run's id."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.api.responses import Forbidden, Missing
from lora_trainer.api.status_cache import StatusCache
from lora_trainer.api.threads import ToolWork, Workers
from lora_trainer.config.param import declared
from lora_trainer.config.schema import TrainConfig
from lora_trainer.host.base import Host
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.manager import JobManager

if TYPE_CHECKING:
    from lora_trainer.api.scan_cache import ScanCache

THUMBNAILS_KEPT = 20_000
PATH_KINDS = ("folder", "file", "lora", "loras", "checkpoint", "vae")
PATH_OPTIONS = tuple(option.path for option in declared(TrainConfig) if option.option.kind in PATH_KINDS)
"""Options that name a place on this computer."""


class ApiContext:
    """Host, runs and threads behind the routes of one app."""

    def __init__(self, host: Host, manager: JobManager) -> None:
        self.host = host
        self.manager = manager
        self.workers = Workers()
        self.live = StatusCache(host, manager)
        self.own_captions: set[Path] = set()
        self.network_works: dict[str, ToolWork] = {}
        self._runs: dict[Path, RunFolder] = {}
        self.workers.later(lambda: forget_old(host.paths().cache_dir / "thumbnails"))

    @cached_property
    def folders(self) -> ScanCache:
        """Pictures as they were last read. Imported when they are first wanted: the host's start does not pay for that."""
        from lora_trainer.api.scan_cache import ScanCache

        return ScanCache(self.workers)

    def allowed(self, text: str, option: str = "path") -> Path:
        """The path of a request. Raises Forbidden when it lies outside what may be touched, Missing when it is empty."""
        if not text.strip() or "\0" in text:
            raise Missing("no path is given.", path=option, fix="Choose a folder or a file.")
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

    def check_places(self, mapping: Mapping[str, Any]) -> None:
        """Raises Forbidden when a path of a config lies outside what may be touched; known models and their folders may."""
        from lora_trainer.data.sources.blueprint import places

        paths = self.host.paths()
        if not paths.allowed_roots:
            return
        sections = ((name, section) for name, section in mapping.items() if isinstance(section, Mapping))
        self.check_values({f"{name}.{option}": value for name, section in sections for option, value in section.items()})
        for option, text in places(data) if isinstance(data := mapping.get("data"), Mapping) else ():
            self.allowed(text, option)

    def check_values(self, values: Mapping[str, Any]) -> None:
        """As check_places, of single options (path -> value)."""
        for option in PATH_OPTIONS:
            given = values.get(option)
            for text in given if isinstance(given, (list, tuple)) else (given,):
                if isinstance(text, str) and text.strip() and not self._known_model(option, text):
                    self.allowed(text, option)

    def _known_model(self, option: str, text: str) -> bool:
        if not option.startswith("model."):
            return False
        if not any(sign in text for sign in "/\\"):
            return True  # a title, which the host looks up in its own lists
        known = [checkpoint.path for checkpoint in self.host.checkpoints()] if option != "model.vae" else list(self.host.vaes())
        return Path(text) in known

    def run_folder(self, run: str) -> RunFolder:
        """The folder of a run's id. Raises Missing for one that is not there, or that is no name."""
        latest = self.manager.latest
        if latest is not None and latest.folder.id == run:
            return latest.folder
        path = self.host.paths().runs_dir / run
        plain = bool(run) and not any(sign in run for sign in "/\\:\0") and run not in (".", "..")
        if not plain or not (path / "run.json").is_file():
            raise Missing("there is no run called {run}.", run=run, path="run", fix="Choose a run of the list.")
        return self._runs.setdefault(path, RunFolder(path))

    def forget(self, folder: RunFolder) -> None:
        """The folder was deleted."""
        self._runs.pop(folder.path, None)


def forget_old(thumbnails: Path) -> None:
    """Deletes the oldest thumbnails above 20 000."""
    known = sorted((path.stat().st_mtime, path) for path in thumbnails.rglob("*.jpg"))
    for _, path in known[: max(0, len(known) - THUMBNAILS_KEPT)]:
        path.unlink(missing_ok=True)
