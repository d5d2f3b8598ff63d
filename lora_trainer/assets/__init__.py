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
from pathlib import Path

HERE = Path(__file__).parent
TOY = "toy-sd15-host"
SHA256 = {
    f"{TOY}.safetensors": "11782f7f29d90702a069937954cc46d60b97165cfabde9c940922e26e16c412b",
    "clip.tar.xz": "e7cd052a3c56ea9a55c8a386f2748293d689f5dd5bc0412499f1888d0acb508c",
    "pictures.tar.xz": "9e93e9b5fa3bf72b56b8aa88d029913202848facd0abde8c37fa81ff1944beed",
}


def cache_folder() -> Path:
    """Where unpacked and derived files go: $LORA_TRAINER_CACHE, else the platform's cache folder, else a temporary one."""
    if from_environment := os.environ.get("LORA_TRAINER_CACHE"):
        return Path(from_environment)
    root = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(root) / "lora_trainer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "lora_trainer"
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir()) / "lora_trainer"


def toy_checkpoint() -> Path:
    """Path of the small model (Stable Diffusion 1.x form, 64 x 64 pixels, safetensors in LDM layout), its .yaml beside it."""
    name = f"{TOY}.safetensors"
    target = cache_folder() / f"{TOY}-{SHA256[name][:12]}" / name
    if not target.is_file():
        with _atomic_folder(target.parent) as folder:
            with lzma.open(HERE / f"{name}.xz") as packed, (folder / name).open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
            _verify(folder / name, SHA256[name])
            shutil.copyfile(HERE / f"{TOY}.yaml", folder / f"{TOY}.yaml")
    return target


def toy_pictures() -> Path:
    """Folder that holds crescent/{train,val} and star/{train,val}, each with one `10_sks ...` folder of 12 pictures."""
    return _unpack("pictures.tar.xz")


def clip_vocabulary() -> Path:
    """Folder that holds CLIP's vocab.json and merges.txt: the same for every Stable Diffusion file."""
    return _unpack("clip.tar.xz") / "clip"


def _unpack(name: str) -> Path:
    target = cache_folder() / f"{name.partition('.')[0]}-{SHA256[name][:12]}"
    if not target.is_dir():
        _verify(HERE / name, SHA256[name])
        with _atomic_folder(target) as folder, tarfile.open(HERE / name) as archive:
            for member in archive.getmembers():
                if member.isfile():
                    path = folder / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    content = archive.extractfile(member)
                    assert content is not None
                    path.write_bytes(content.read())
    return target


def _verify(path: Path, sha256: str) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise OSError(f"{path} is damaged: its hash is not the one that this version ships. Download the project again.")


class _atomic_folder:
    """Fills a temporary folder and renames it, so that an interruption or two processes at once never leave half a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
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
