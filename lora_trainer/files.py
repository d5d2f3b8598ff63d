"""Atomic file writes: a temporary file in the same folder, then one replace. Reading of regular files, up to a size."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lora_trainer.errors import DiskFull, TrainerError

DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
LOCKED_BYTE = 1 << 30
"""Position of the byte of a file that is locked on Windows."""


class NotRegular(OSError):
    """A FIFO, a device, a socket: reading one can wait for ever."""


class TooLarge(OSError):
    """A file that is larger than what its reader takes."""


def open_regular(path: Path, buffering: int = -1) -> IO[bytes]:
    """Opens a regular file for reading. Raises OSError: for anything else (NotRegular) without having waited for it."""
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: opening some devices has an effect
        raise _not_regular(path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # replaced since
        os.close(handle)
        raise _not_regular(path)
    return os.fdopen(handle, "rb", buffering)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises OSError, as `open_regular`, and TooLarge where it holds more than `limit` bytes."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(errno.EFBIG, f"the file is larger than {limit / 1e6:g} MB", str(path))
    return content


def _not_regular(path: Path) -> OSError:
    if path.is_dir():
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return NotRegular(errno.EINVAL, "it is not a regular file", str(path))


def expand_user(text: str) -> Path:
    """The path with `~` expanded, and as written where there is no such user (Path.expanduser raises RuntimeError)."""
    return Path(os.path.expanduser(text))  # noqa: PTH111


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` atomically. Raises TrainerError naming the file if the disk is full or the folder is not writable."""
    _write(path, content, lambda file: None)


def write_durably(path: Path, content: bytes) -> None:
    """As `write_atomically`, and flushed to the disk on return: a power cut leaves either the old or the new file."""
    _write(path, content, _fsync)
    sync_folder(path.parent)


def _write(path: Path, content: bytes, flush: Callable[[IO[bytes]], None]) -> None:
    with _replacing(path) as file:
        file.write(content)
        flush(file)


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in pieces; it replaces `path` when the block ends without an error. Raises TrainerError."""
    with _replacing(path) as file:
        yield file
        _fsync(file)
    sync_folder(path.parent)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        if is_disk_full(error):
            raise write_error(path, error) from error
        raise TrainerError(
            "{path} cannot be written ({reason}).",
            path=str(path),
            reason=error.strerror or error,
            fix="Choose a folder that you may write to.",
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        replace_file(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise write_error(path, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in DISK_FULL)


def write_error(path: Path, error: OSError) -> TrainerError:
    """The error for a file that could not be written: DiskFull where there is no room."""
    kind = DiskFull if is_disk_full(error) else TrainerError
    return kind(
        "{path} could not be written ({reason}).",
        path=str(path),
        reason=error.strerror or error,
        fix="Free some disk space or choose another folder.",
    )


def _fsync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, where the system supports it."""
    if sys.platform == "win32":
        return
    with suppress(OSError):  # some network file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_file(source: Path, target: Path) -> None:
    """os.replace that retries for up to 2 s: on Windows a virus scanner or a reader may hold the target for a moment."""
    end = time.monotonic() + 2.0
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a whole file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path` between processes; the file stays. The system releases it when a process dies.

    Raises OSError if the file system does not support locks.
    """
    with path.open("a+b") as file:
        lock_open_file(file)  # released when the file is closed
        yield


def lock_open_file(file: IO[bytes]) -> None:
    """Waits for an exclusive lock on an open file; it ends when the file is closed. Raises OSError as `file_lock`."""
    if sys.platform == "win32":
        import msvcrt

        position = file.tell()
        file.seek(LOCKED_BYTE)  # behind the content: Windows lets nobody else read a locked byte
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                break
            except OSError as error:  # after ten tries of a second each
                if error.errno != errno.EDEADLOCK:
                    raise
        file.seek(position)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
