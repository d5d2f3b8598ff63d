"""Hashes of large files, each calculated once: kept by the file's path, size and time.

A WebUI keeps its own; a headless run keeps them in the cache folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from lora_trainer.files import file_sha256, write_atomically

NAME = "checkpoint-hashes.json"


def known_sha256(path: Path, cache: Path) -> str:
    """The hex sha256 of a file that was asked for before and is as it was then; empty for any other."""
    return _kept(cache).get(_stamp(path), "")


def sha256_of(path: Path, cache: Path) -> str:
    """The hex sha256 of a file, calculated where it is not known yet."""
    stamp = _stamp(path)
    if found := _kept(cache).get(stamp, ""):
        return found
    found = file_sha256(path)
    write_atomically(cache / NAME, json.dumps({**_kept(cache), stamp: found}, indent=1).encode())
    return found


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}"


def _kept(cache: Path) -> dict[str, str]:
    try:
        found = json.loads((cache / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(stamp): str(value) for stamp, value in found.items()} if isinstance(found, dict) else {}
