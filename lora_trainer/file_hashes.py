"""What is in a file, by its hash: read once, then known by its size and times as long as these stay."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from lora_trainer.files import file_sha256

Stamp = tuple[int, int, int, int]
FRESH = 2_000_000_000
"""Nanoseconds for which a changed file is not believed to be known: some file systems count time in steps of two seconds."""
AT_ONCE = 500


class FileHashes:
    """Hashes (32 bytes) of files, kept in a database in `folder`; without a folder, or where it fails, each is read anew.

    Another `name` is for other bytes that hold as long as the file is untouched. A file that changed less than `fresh` nanoseconds ago
    (None: FRESH) is not believed to be known.
    """

    def __init__(self, folder: Path | None, name: str = "contents.sqlite", fresh: int | None = None) -> None:
        self._file = None if folder is None else folder / name
        self._fresh = fresh
        self._known: dict[str, tuple[Stamp, bytes]] = {}
        self._new: dict[str, tuple[Stamp, bytes]] = {}

    def look_up(self, paths: Iterable[Path]) -> None:
        """Fetches what is known of many files at once."""
        if self._file is None or not self._file.is_file():
            return
        wanted = {_name_of(text): text for path in paths if (text := os.fspath(path)) not in self._known}
        with self._database() as database:
            for row in _rows(database, list(wanted)):
                self._known[wanted[row[0]]] = (row[1:5], row[5])

    def known(self, path: Path, stamp: Stamp) -> bytes | None:
        """The hash, if the file has not been touched since it was read."""
        found = self._known.get(os.fspath(path))
        return found[1] if found is not None and found[0] == stamp else None

    def digest(self, path: Path) -> tuple[Stamp, bytes]:
        """The file's stamp and hash. Raises OSError."""
        stamp = stamp_of(path)
        if found := self.known(path, stamp):
            return stamp, found
        digest = bytes.fromhex(file_sha256(path))
        self.remember(path, stamp, digest)
        return stamp, digest

    def remember(self, path: Path, stamp: Stamp, found: bytes) -> None:
        """Keeps what was found in the file that had this stamp before it was read."""
        if time.time_ns() - max(stamp[1], stamp[2]) > (FRESH if self._fresh is None else self._fresh):
            name = os.fspath(path)
            self._known[name] = self._new[name] = (stamp, found)

    def save(self) -> None:
        """Writes down what was read since the last time."""
        new, self._new = self._new, {}
        if not new:
            return
        rows = [(_name_of(name), *stamp, digest) for name, (stamp, digest) in new.items()]
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?, ?);", rows)
            database.execute("COMMIT")

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The database; one in memory where there is none. What fails inside is left out: that only costs time."""
        with closing(self._connected()) as database, suppress(sqlite3.Error):
            yield database

    def _connected(self) -> sqlite3.Connection:
        for _ in range(2):
            if self._file is None:
                break
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                return _opened(str(self._file))
            except sqlite3.OperationalError:  # locked for long, or a folder that may not be written
                self._file = None
            except (sqlite3.Error, OSError):  # damaged: it is made anew
                with suppress(OSError):
                    self._file.unlink()
        return _opened(":memory:")


def _opened(place: str) -> sqlite3.Connection:
    database = sqlite3.connect(place, timeout=10, isolation_level=None)
    try:
        database.execute(
            "CREATE TABLE IF NOT EXISTS contents"
            " (path BLOB PRIMARY KEY, size INT, changed INT, moved INT, number INT, digest BLOB) WITHOUT ROWID"
        )
    except sqlite3.Error:
        database.close()
        raise
    return database


def _rows(database: sqlite3.Connection, names: list[bytes]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        marks = ",".join("?" * len(part))
        yield from database.execute(f"SELECT path, size, changed, moved, number, digest FROM contents WHERE path IN ({marks})", part)


def _name_of(name: str) -> bytes:
    return os.fsencode(name if os.path.isabs(name) else os.path.abspath(name))  # noqa: PTH100, PTH117 (once for each of many)


def stamp_of(path: Path) -> Stamp:
    """Size, time of change, time of renaming (on Windows: of creation) and number of a file. Raises OSError."""
    state = os.stat(path)  # noqa: PTH116 (half the time of Path.stat, once for each of many)
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino & (2**63 - 1)


CHECKPOINTS = "checkpoint-hashes.sqlite"


def known_sha256(path: Path, cache: Path) -> str:
    """The hex sha256 of a model's file that was asked for before and is as it was then; empty for any other."""
    hashes = FileHashes(cache, CHECKPOINTS, fresh=0)
    hashes.look_up([path])
    try:
        return (hashes.known(path, stamp_of(path)) or b"").hex()
    except OSError:
        return ""


def checkpoint_sha256(path: Path, cache: Path) -> str:
    """The hex sha256 of a model's file, read only where it is not known yet. A WebUI keeps its own; this is for a headless run.

    Raises OSError where the file cannot be read.
    """
    hashes = FileHashes(cache, CHECKPOINTS, fresh=0)
    hashes.look_up([path])
    _, digest = hashes.digest(path)
    hashes.save()
    return digest.hex()
