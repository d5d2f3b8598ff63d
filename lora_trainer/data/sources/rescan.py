"""A folder that was read before and has not been touched since is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from lora_trainer.data.gc_pause import uncollected
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.scan import Scan, scan_source

FRESH = 2_000_000_000
"""Nanoseconds for which a changed file is not believed to stay as it is: some file systems count time in steps of two seconds."""
KEPT = 8


def scan_again(source: Source) -> Scan:
    """As scan_source; at once where names, sizes and times of all files are as they were. Raises DatasetError."""
    with uncollected():
        state = _state(source)
        return scan_source(source) if state is None else _scanned(source, state)


@lru_cache(maxsize=KEPT)
def _scanned(source: Source, _state: bytes) -> Scan:
    return scan_source(source)


def _state(source: Source) -> bytes | None:
    """A hash over all that reading depends on; None where something changed just now or cannot be seen."""
    digest, newest = hashlib.sha256(), 0
    try:
        for name, size, changed, moved, number in _files(source):
            newest = max(newest, changed, moved)
            digest.update(b"%d %d %d %d " % (size, changed, moved, number))
            digest.update(os.fsencode(name) + b"\0")
    except OSError:
        return None
    return None if time.time_ns() - newest < FRESH else digest.digest()


def _files(source: Source) -> Iterator[tuple[str, int, int, int, int]]:
    """(path, size, time of change, time of renaming, number) of the metadata file and every file in the folder and those in it."""
    for one in (source.metadata_file,) if source.metadata_file else ():
        yield one, *_facts(Path(one).stat())
    if not source.folder.strip():
        return
    waiting = [(source.folder, 0)]
    while waiting:
        folder, depth = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.path, *_facts(entry.stat())
                if depth == 0 and entry.is_dir():
                    waiting.append((entry.path, 1))


def _facts(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
