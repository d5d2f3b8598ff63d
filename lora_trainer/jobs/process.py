"""Whether the process that writes a run is alive."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def process_start_time(pid: int) -> str:
    """Start time of the process in the system's clock ticks: distinguishes it from a later one with the same pid. "" if unknown."""
    if sys.platform == "win32":
        return _start_time_windows(pid)
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_process_alive(pid: int, start_time: str = "") -> bool:
    """Whether a process with this pid, started at this time (if known), is running on this machine."""
    if pid <= 0:
        return False
    if start_time and (current := process_start_time(pid)) and current != start_time:
        return False
    return _is_alive_windows(pid) if sys.platform == "win32" else _is_alive_posix(pid)


def _is_alive_posix(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:  # a zombie does not write
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def _start_time_windows(pid: int) -> str:
    import ctypes

    query_limited = 0x1000
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p  # a handle has 64 bits
    handle = kernel.OpenProcess(query_limited, False, pid)
    if not handle:
        return ""
    created, other = ctypes.c_ulonglong(), ctypes.c_ulonglong()
    others = [ctypes.byref(other)] * 3
    succeeded = kernel.GetProcessTimes(ctypes.c_void_p(handle), ctypes.byref(created), *others)
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return str(created.value) if succeeded else ""


def _is_alive_windows(pid: int) -> bool:
    # on Windows os.kill(pid, 0) would send Ctrl-C
    import ctypes

    query_limited, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(query_limited, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return code.value == still_active
