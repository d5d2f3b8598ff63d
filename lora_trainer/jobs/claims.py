"""Claims: a file that only one process can hold, which names its holder. What a dead process holds can be claimed anew."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import attrs

from lora_trainer.errors import TrainerError
from lora_trainer.files import lock_open_file
from lora_trainer.jobs.process import is_process_alive, process_start_time

STALE_SECONDS = 600
"""A holder on another machine that wrote nothing for this long counts as dead."""
WRITING_SECONDS = 10
"""For so long a file without a holder counts as one whose holder is just writing it."""
CLAIM_VARIABLE = "LORA_TRAINER_CLAIM"
"""Environment variable with the token of the claim that the process takes over from the one that started it."""


class AlreadyClaimed(Exception):
    """Another process, or another claim of this process, holds the file."""


@attrs.frozen(eq=False)
class Claim:
    """A file that this process holds. `token` distinguishes it from every other claim, in this process too."""

    path: Path
    token: str

    @classmethod
    def take(cls, path: Path, *, others: tuple[Path, ...] = ()) -> Claim:
        """Creates the file; takes it over if its holder is dead, or handed it to this process.

        `others`: files whose change shows that a holder on another machine is alive. Raises AlreadyClaimed, and OSError if the file cannot
        be written.
        """
        token = secrets.token_hex(8)
        while True:
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
            except FileExistsError:
                if _take_over(path, token, others):
                    return cls(path, token)
            else:
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(_holder(token))
                except OSError:  # the disk is full
                    path.unlink(missing_ok=True)
                    raise
                return cls(path, token)

    @classmethod
    def handed_over(cls, path: Path) -> Claim | None:
        """The claim that the starting process handed to this one (see `environment`), now held by this process; None if there is none."""
        token = os.environ.get(CLAIM_VARIABLE, "")
        with suppress(FileNotFoundError):
            if token and _take_over(path, token, (), handed=True):
                return cls(path, token)
        return None

    def environment(self) -> dict[str, str]:
        """Environment variables with which a new process takes this claim over."""
        return {CLAIM_VARIABLE: self.token}

    def release(self) -> bool:
        """Deletes the file if it is still this claim's; returns whether it was. A claim may be released twice."""
        try:
            if read_holder(self.path).get("token") != self.token:
                return False
            self.path.unlink()
        except OSError:  # its folder was deleted, or the disk is read-only
            return False
        return True


def is_held(path: Path, *, others: tuple[Path, ...] = (), besides_own: bool = False) -> bool:
    """Whether a living process holds the file; `besides_own`: a process other than this one."""
    try:
        holder, changed = read_holder(path), path.stat().st_mtime
    except OSError:
        return False
    if besides_own and holder.get("machine") == socket.gethostname() and holder.get("pid") == os.getpid():
        return False
    return _is_alive(holder, max([changed, *map(_last_modified, others)]))


@contextmanager
def claimed(path: Path, held: TrainerError) -> Iterator[Claim]:
    """Holds the file inside. Raises `held` where another process holds it, OSError if it cannot be written."""
    try:
        claim = Claim.take(path)
    except AlreadyClaimed:
        raise held from None
    try:
        yield claim
    finally:
        claim.release()


def read_holder(path: Path) -> Mapping[str, Any]:
    """{"pid", "mark", "machine", "token"} of the holder; {} if the file is empty or damaged. Raises OSError if it cannot be read."""
    return _parse_holder(path.read_bytes())


def _take_over(path: Path, token: str, others: tuple[Path, ...], *, handed: bool = False) -> bool:
    """Writes the new holder into the file of a dead one (`handed`: into a file that has this token); False if it is gone by now.

    Processes that do this at once do it one after the other: each locks the file that it has opened. Raises AlreadyClaimed.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return False
    with file:
        with suppress(OSError):  # a file system without locks
            lock_open_file(file)
        try:
            current = path.stat()
        except FileNotFoundError:
            return False
        if (opened := os.fstat(file.fileno())).st_ino != current.st_ino:  # released and claimed anew since it was opened
            return False
        holder = _parse_holder(file.read())
        if handed and holder.get("token") != token:
            return False
        if not handed and _is_alive(holder, max([opened.st_mtime, *map(_last_modified, others)])):
            raise AlreadyClaimed(str(path))
        _rewrite(file, _holder(token))
    return True


def _rewrite(file: IO[bytes], content: bytes) -> None:
    file.seek(0)
    file.truncate()
    file.write(content)
    file.flush()


def _holder(token: str) -> bytes:
    pid = os.getpid()
    return json.dumps({"pid": pid, "mark": process_start_time(pid), "machine": socket.gethostname(), "token": token}).encode("utf-8")


def _parse_holder(content: bytes) -> Mapping[str, Any]:
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(holder: Mapping[str, Any], changed: float) -> bool:
    """Whether the holder lives; `changed`: when its files changed last."""
    pid, quiet = holder.get("pid"), time.time() - changed
    if type(pid) is not int:
        return quiet < WRITING_SECONDS
    if holder.get("machine") != socket.gethostname():
        return quiet < STALE_SECONDS
    return is_process_alive(pid, str(holder.get("mark", "")))


def _last_modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
