"""Hashes of files, computed once and reused while size and times of the file are unchanged."""

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
"""Nanoseconds for which the hash of a changed file is not stored: some file systems store times in steps of two seconds."""
ROWS_PER_QUERY = 500


class FileHashes:
    """sha256 (32 bytes) of files, stored in a database in `folder`; without one, or if it fails, files are hashed each time.

    Databases of another `name` may store other bytes that are valid while the file is unchanged. Files that changed less than `fresh`
    nanoseconds ago (None: FRESH) are not stored.
    """

    def __init__(self, folder: Path | None, name: str = "contents.sqlite", fresh: int | None = None) -> None:
        self._file = None if folder is None else folder / name
        self._fresh = fresh
        self._known: dict[str, tuple[Stamp, bytes]] = {}
        self._new: dict[str, tuple[Stamp, bytes]] = {}

    def preload(self, paths: Iterable[Path]) -> None:
        """Loads the entries of many files at once."""
        if self._file is None or not self._file.is_file():
            return
        path_by_key = {_path_key(text): text for path in paths if (text := os.fspath(path)) not in self._known}
        with self._database() as database:
            for row in _rows(database, list(path_by_key)):
                self._known[path_by_key[row[0]]] = (row[1:5], row[5])

    def get(self, path: Path, stamp: Stamp) -> bytes | None:
        """The stored hash if the file has not changed since, else None."""
        entry = self._known.get(os.fspath(path))
        return entry[1] if entry is not None and entry[0] == stamp else None

    def digest(self, path: Path) -> tuple[Stamp, bytes]:
        """The file's stamp and hash, computed if it is not stored. Raises OSError."""
        stamp = stamp_of(path)
        if known_digest := self.get(path, stamp):
            return stamp, known_digest
        digest = bytes.fromhex(file_sha256(path))
        self.put(path, stamp, digest)
        return stamp, digest

    def put(self, path: Path, stamp: Stamp, digest: bytes) -> None:
        """Stores the digest of a file that had this stamp before it was read."""
        if time.time_ns() - max(stamp[1], stamp[2]) > (FRESH if self._fresh is None else self._fresh):
            name = os.fspath(path)
            self._known[name] = self._new[name] = (stamp, digest)

    def save(self) -> None:
        """Writes new entries to the database."""
        new, self._new = self._new, {}
        if not new:
            return
        rows = [(_path_key(name), *stamp, digest) for name, (stamp, digest) in new.items()]
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?, ?);", rows)
            database.execute("COMMIT")

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The database, else one in memory. Database errors inside are ignored: they only cost time."""
        with closing(self._connect()) as database, suppress(sqlite3.Error):
            yield database

    def _connect(self) -> sqlite3.Connection:
        for _ in range(2):
            if self._file is None:
                break
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                return _open_database(str(self._file))
            except sqlite3.OperationalError:  # locked for long, or the folder is not writable
                self._file = None
            except (sqlite3.Error, OSError):  # damaged: recreate it
                with suppress(OSError):
                    self._file.unlink()
        return _open_database(":memory:")


def _open_database(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10, isolation_level=None)
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
    for start in range(0, len(names), ROWS_PER_QUERY):
        part = names[start : start + ROWS_PER_QUERY]
        marks = ",".join("?" * len(part))
        yield from database.execute(f"SELECT path, size, changed, moved, number, digest FROM contents WHERE path IN ({marks})", part)


def _path_key(name: str) -> bytes:
    return os.fsencode(name if os.path.isabs(name) else os.path.abspath(name))  # noqa: PTH100, PTH117 (once for each of many)


def stamp_of(path: Path) -> Stamp:
    """Size, mtime, ctime (nanoseconds) and inode of a file. Raises OSError."""
    stat = os.stat(path)  # noqa: PTH116 (half the time of Path.stat, once for each of many)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & (2**63 - 1)


CHECKPOINTS = "checkpoint-hashes.sqlite"


def known_sha256(path: Path, cache: Path) -> str:
    """The stored hex sha256 of a model file; empty if it was never computed or the file has changed."""
    hashes = FileHashes(cache, CHECKPOINTS, fresh=0)
    hashes.preload([path])
    try:
        return (hashes.get(path, stamp_of(path)) or b"").hex()
    except OSError:
        return ""


def checkpoint_sha256(path: Path, cache: Path) -> str:
    """The hex sha256 of a model file, computed if it is not stored. For headless runs: a WebUI has its own.

    Raises OSError if the file cannot be read.
    """
    hashes = FileHashes(cache, CHECKPOINTS, fresh=0)
    hashes.preload([path])
    _, digest = hashes.digest(path)
    hashes.save()
    return digest.hex()
