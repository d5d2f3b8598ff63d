"""The context shared by all routes, and the checks of paths and run ids in requests."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lora_trainer.api.responses import Forbidden, NotFound
from lora_trainer.api.status_cache import StatusCache
from lora_trainer.api.threads import ToolJob, Workers
from lora_trainer.config.param import declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.files import expand_user
from lora_trainer.host.base import Host
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.manager import JobManager
from lora_trainer.path_kinds import is_device_path, is_network_path

if TYPE_CHECKING:
    from lora_trainer.api.scan_cache import ScanCache

MAX_THUMBNAILS = 20_000
MAX_NAME = 200
PICTURE_DEPTH, MASK_DEPTH = 3, 30
"""Levels of folders in which pictures and masks are looked for."""
PICTURE_FOLDERS = ("data.train_data_dir", "data.reg_data_dir", "data.mask_dir", "validate.data_dir")
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
        self._network_roots: set[PureWindowsPath] = set()
        self.workers.in_background(lambda: remove_old_thumbnails(host.paths().cache_dir / "thumbnails"))

    @cached_property
    def scans(self) -> ScanCache:
        """The scanned folders. Imported on first use, so that the host's start-up does not pay for it."""
        from lora_trainer.api.scan_cache import ScanCache

        return ScanCache(self.workers)

    def allowed_path(self, text: str, option: str = "path", *, in_config: bool = False) -> Path:
        """The path in a request. Raises Forbidden outside the allowed folders and for devices, NotFound when it is empty.

        A path on another computer (\\\\server\\share) is only allowed below one that the user's config holds (`in_config`): an address
        in a foreign page must not make this computer log in there.
        """
        if not text.strip() or "\0" in text:
            raise NotFound("no path is given.", path=option, fix="Choose a folder or a file.")
        if not in_config and is_device_path(text):
            raise Forbidden("{place} names a device.", place=text[:200], path=option, fix="Choose a folder or a file.")
        if is_network_path(text) and not in_config and not self._is_below_network_root(text):
            raise Forbidden(
                "{place} lies on another computer, and no setting names it.",
                place=text[:200],
                path=option,
                fix="Put its folder into the settings first.",
            )
        path = expand_user(text)
        paths = self.host.paths()
        if not paths.allows(path):
            raise Forbidden(
                "{place} lies outside the folders that may be used while other computers can reach this WebUI.",
                place=str(path)[:1000],
                path=option,
                fix="Put it below {root}, or start it with {flag}.",
                root=str(paths.allowed_roots[0]),
                flag=paths.allow_flag,
            )
        if in_config and is_network_path(text):
            self._network_roots.add(PureWindowsPath(text))
        return path

    def _is_below_network_root(self, text: str) -> bool:
        path = PureWindowsPath(text)
        return ".." not in path.parts and any(path == root or root in path.parents for root in self._network_roots)

    def check_paths(self, mapping: Mapping[str, Any]) -> None:
        """Raises Forbidden when a path in a config lies outside the allowed folders, or a picture there is a link out of them.

        The host's own models are always allowed.
        """
        from lora_trainer.data.sources.blueprint import source_paths, subset_paths

        sections = ((name, section) for name, section in mapping.items() if isinstance(section, Mapping))
        self.check_option_paths({f"{name}.{option}": value for name, section in sections for option, value in section.items()})
        data = mapping.get("data")
        if not isinstance(data, Mapping):
            return
        if not self.host.paths().allowed_roots:
            for option, text in subset_paths(data):
                self.allowed_path(text, option, in_config=True)
            return
        for option, text in source_paths(data):
            self._check_links(self.allowed_path(text, option, in_config=True), option)

    def check_option_paths(self, values: Mapping[str, Any]) -> None:
        """As check_paths, for single options (option's path -> value)."""
        limited = bool(self.host.paths().allowed_roots)
        for option in PATH_OPTIONS:
            value = values.get(option)
            for text in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(text, str) and text.strip() and not (limited and self._is_known_model(option, text)):
                    path = self.allowed_path(text, option, in_config=True)
                    if option in PICTURE_FOLDERS:
                        self._check_links(path, option)

    def _check_links(self, folder: Path, option: str) -> None:
        """Raises Forbidden for a link in a folder of pictures, or in its subfolders, that leads out of the allowed folders."""
        if self.host.paths().allowed_roots:
            aside: set[Path] = set()
            for link in _links_in(folder, MASK_DEPTH if option.endswith("mask_dir") else PICTURE_DEPTH):
                if aside.intersection(link.parents):
                    continue
                if _is_left_aside(link, folder, option):
                    aside.add(link)
                else:
                    self.require_no_link_out(link, option)

    def require_no_link_out(self, path: Path, option: str = "path") -> None:
        """Raises Forbidden for a link inside the allowed folders that leads out of them."""
        paths = self.host.paths()
        if not paths.allows(path):
            raise Forbidden(
                "{place} is a link to a file outside the folders that may be used while other computers can reach this WebUI.",
                place=str(path),
                path=option,
                fix="Put the file itself there, or start it with {flag}.",
                flag=paths.allow_flag,
            )

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
        if not is_plain_name or len(run) > MAX_NAME or is_device_path(run) or not (path / "run.json").is_file():
            raise NotFound("there is no run called {run}.", run=run[:MAX_NAME], path="run", fix="Choose a run of the list.")
        return self._runs.setdefault(path, RunFolder(path))

    def forget(self, folder: RunFolder) -> None:
        """Drops a deleted folder from the cache."""
        self._runs.pop(folder.path, None)


def _links_in(folder: Path, depth: int) -> Iterator[Path]:
    """The symbolic links in a folder and its subfolders; none where it cannot be read, as no run could read it either."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_link(entry):
                    yield Path(entry.path)
                if depth > 1 and entry.is_dir():
                    yield from _links_in(Path(entry.path), depth - 1)
    except OSError:
        return


def _is_left_aside(link: Path, folder: Path, option: str) -> bool:
    """Whether a link is a folder that no scan reads: beside the pictures, or beside folders with a number in their names."""
    from lora_trainer.data.sources.folders import detect_layout
    from lora_trainer.errors import DatasetError

    if option.endswith("mask_dir") or not link.is_dir():
        return False
    try:
        subsets = detect_layout(folder, 1, option).subsets
    except DatasetError:
        return False
    return not any(subset.folder == link or link in subset.folder.parents for subset in subsets)


def _is_link(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a symbolic link, or a junction of Windows, which is none to Python before 3.12."""
    if entry.is_symlink() or sys.platform != "win32":
        return entry.is_symlink()
    return bool(entry.stat(follow_symlinks=False).st_file_attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)


def remove_old_thumbnails(folder: Path) -> None:
    """Deletes the oldest thumbnails above 20 000."""
    by_age = sorted((path.stat().st_mtime, path) for path in folder.rglob("*.jpg"))
    for _, path in by_age[: max(0, len(by_age) - MAX_THUMBNAILS)]:
        path.unlink(missing_ok=True)
