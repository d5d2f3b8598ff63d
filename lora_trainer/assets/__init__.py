"""Assets that ship with the project: a small trained model, pictures of two concepts it does not know, CLIP's vocabulary.

Compressed here, unpacked on first use into a cache folder named after the content's hash.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lora_trainer.errors import TrainerError

HERE = Path(__file__).parent
TOY = "toy-sd15-host"
SHA256 = {
    f"{TOY}.safetensors": "11782f7f29d90702a069937954cc46d60b97165cfabde9c940922e26e16c412b",
    "clip.tar.xz": "e7cd052a3c56ea9a55c8a386f2748293d689f5dd5bc0412499f1888d0acb508c",
    "pictures.tar.xz": "9e93e9b5fa3bf72b56b8aa88d029913202848facd0abde8c37fa81ff1944beed",
}

_TOY_FILE = f"{TOY}.safetensors"
_TOY_FOLDER = f"{TOY}-{SHA256[_TOY_FILE][:12]}"
LEFTOVER_SECONDS = 3600
"""A partly filled folder of this age belongs to a process that was killed."""


def cache_folder() -> Path:
    """Where unpacked and derived files go: the first of `cache_folders` that can be written; if there is none, the last."""
    folders = cache_folders()
    return next((folder for folder in folders if _is_writable(folder)), folders[-1])


def cache_folders() -> list[Path]:
    """$LORA_TRAINER_CACHE, the platform's cache folder, and a temporary one, in the order in which they are tried."""
    from_environment = os.environ.get("LORA_TRAINER_CACHE")
    root = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    user = os.getuid() if hasattr(os, "getuid") else ""  # a temporary folder is everybody's
    own = [Path(from_environment)] if from_environment else []
    return [*own, Path(root) / "lora_trainer", Path(tempfile.gettempdir()) / f"lora_trainer-{user}".rstrip("-")]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def toy_checkpoint() -> Path:
    """Path of the small model (Stable Diffusion 1.x form, 64 x 64 pixels, safetensors in LDM layout), its .yaml beside it.

    Unpacks it if that was not done yet. Raises TrainerError as `_unpacked`.
    """
    return _unpacked(_TOY_FOLDER, _unpack_toy) / _TOY_FILE


def toy_path() -> Path:
    """The small model's path, whether it is unpacked already or not."""
    folders = cache_folders()
    usable = (folder for folder in folders if _exists(folder / _TOY_FOLDER) or _is_writable(folder))
    return next(usable, folders[-1]) / _TOY_FOLDER / _TOY_FILE


def is_toy(path: Path) -> bool:
    """Whether a path is the small model's."""
    return any(path == folder / _TOY_FOLDER / _TOY_FILE for folder in cache_folders())


def _unpack_toy(folder: Path) -> None:
    with lzma.open(HERE / f"{_TOY_FILE}.xz") as packed, (folder / _TOY_FILE).open("wb") as plain:
        try:
            shutil.copyfileobj(packed, plain, 1 << 20)
        except (lzma.LZMAError, EOFError) as error:
            raise _damaged(HERE / f"{_TOY_FILE}.xz") from error
    _verify(folder / _TOY_FILE, SHA256[_TOY_FILE])
    shutil.copyfile(HERE / f"{TOY}.yaml", folder / f"{TOY}.yaml")


def toy_pictures() -> Path:
    """Folder that holds crescent/{train,val} and star/{train,val}, each with one `10_sks ...` folder of 12 pictures."""
    return _unpacked_archive("pictures.tar.xz")


def clip_vocabulary() -> Path:
    """Folder that holds CLIP's vocab.json and merges.txt: the same for every Stable Diffusion file."""
    return _unpacked_archive("clip.tar.xz") / "clip"


def _unpacked_archive(name: str) -> Path:
    def unpack(folder: Path) -> None:
        _verify(HERE / name, SHA256[name])
        with tarfile.open(HERE / name) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    path = folder / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())

    return _unpacked(f"{name.partition('.')[0]}-{SHA256[name][:12]}", unpack)


def _unpacked(name: str, unpack: Callable[[Path], None]) -> Path:
    """The folder `name` in the first cache folder that holds it, or in which `unpack` can fill it.

    Raises TrainerError where there is none, or if what ships is damaged.
    """
    places = cache_folders()
    reason: OSError | ValueError | None = None
    for place in places:
        if _exists(place / name):
            return place / name
        try:
            with _atomic_folder(place / name) as folder:
                unpack(folder)
        except (OSError, ValueError) as error:  # not writable, or full
            reason = error
        else:
            return place / name
    raise TrainerError(
        "{name} cannot be unpacked into {folders} ({reason}).",
        name=name.rpartition("-")[0],
        folders=", ".join(map(str, places)),
        reason=getattr(reason, "strerror", None) or reason,
        fix="Free some disk space, or set LORA_TRAINER_CACHE to a folder that you may write to.",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _verify(path: Path, sha256: str) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise _damaged(path)


def _damaged(path: Path) -> TrainerError:
    return TrainerError(
        "{path} is damaged: its hash is not the one that this version ships.", path=str(path), fix="Download the project again."
    )


class _atomic_folder:
    """Fills a temporary folder and renames it, so that an interruption or two processes at once never leave half a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.target.parent.glob(f"{self.target.name}.*"):  # of a killed process
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    shutil.rmtree(leftover, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=self.target.name + ".", dir=self.target.parent))
        return self.folder

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self.target.exists():
            try:
                self.folder.rename(self.target)
            except OSError:  # another process was faster
                if not self.target.exists():
                    raise
        shutil.rmtree(self.folder, ignore_errors=True)
