"""Keeps the computer from going to sleep during a run; does nothing where the system offers no way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTINUOUS, SYSTEM_REQUIRED = 0x80000000, 0x00000001


@contextmanager
def keep_awake(*, enabled: bool = True) -> Iterator[None]:
    """The computer does not sleep while the block runs; the screen may turn off."""
    if not enabled:
        yield
    elif sys.platform == "win32":
        import ctypes

        # the request belongs to the thread that makes it: a run's generator is iterated in one thread
        ctypes.windll.kernel32.SetThreadExecutionState(CONTINUOUS | SYSTEM_REQUIRED)  # type: ignore[attr-defined,unused-ignore]
        try:
            yield
        finally:
            ctypes.windll.kernel32.SetThreadExecutionState(CONTINUOUS)  # type: ignore[attr-defined,unused-ignore]
    else:
        yield from _run_inhibitor(_inhibitor_command(sys.platform))


def _inhibitor_command(platform: str) -> list[str]:
    """A program that inhibits sleep until it ends; it ends by itself when this process does. [] where there is none."""
    pid = str(os.getpid())
    if platform == "darwin" and (path := shutil.which("caffeinate")):
        return [path, "-i", "-w", pid]
    if (path := shutil.which("systemd-inhibit")) and (tail := shutil.which("tail")) and Path("/run/systemd/system").is_dir():
        return [path, "--what=sleep:idle", "--who=lora_trainer", "--why=training", "--mode=block", tail, f"--pid={pid}", "-f", os.devnull]
    return []


def _run_inhibitor(command: list[str]) -> Iterator[None]:
    process = None
    if command:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:  # not allowed here: the run is worth more than being awake
            process = None
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()
