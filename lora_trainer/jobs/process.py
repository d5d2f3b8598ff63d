"""Whether the process that writes a run is still there."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def process_mark(pid: int) -> str:
    """When the process began, in the system's own count: tells it from a later one with the same number. "" where not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def process_alive(pid: int, mark: str = "") -> bool:
    """Whether a process of this number, begun at this mark (where known), runs on this machine."""
    if pid <= 0:
        return False
    if mark and (now := process_mark(pid)) and now != mark:
        return False
    return _windows_alive(pid) if sys.platform == "win32" else _posix_alive(pid)


def _posix_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a dead child that nobody has waited for is no writer
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def _windows_alive(pid: int) -> bool:
    # os.kill(pid, 0) would send Ctrl-C there
    import ctypes

    query_limited, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(query_limited, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active
