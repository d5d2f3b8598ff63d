"""Paths that are refused by their text alone, before the file system sees them: of other computers, and of devices."""

from __future__ import annotations

import re
import sys
from pathlib import PureWindowsPath

RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])[ .]*(?:[.:].*)?", re.IGNORECASE | re.DOTALL)
"""Device names of Windows, which it finds in every folder and with every ending."""
SYSTEM_FOLDERS = ("/proc/", "/sys/", "/dev/")
"""Files there may wait for ever when they are read, although some call themselves regular."""
SHARED_MEMORY = "/dev/shm/"


def is_network_path(text: str) -> bool:
    """Whether a path begins with two slashes of either kind: on Windows, looking at it already contacts the computer that it names."""
    return len(text) > 1 and text[0] in "/\\" and text[1] in "/\\"


def is_device_path(text: str) -> bool:
    """Whether a path names a device: Windows' "NUL" and "\\\\??\\\\...", or what lies in Linux' system folders."""
    if text.startswith("\\??\\") or any(RESERVED.fullmatch(part) for part in PureWindowsPath(text).parts):
        return True
    if sys.platform == "win32":
        return False
    inside = f"{text.rstrip('/')}/"
    return inside.startswith(SYSTEM_FOLDERS) and not inside.startswith(SHARED_MEMORY)
