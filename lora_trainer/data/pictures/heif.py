"""HEIC and HEIF pictures, as phones take them: read where the package pillow-heif is installed."""

from __future__ import annotations

import sys
from functools import cache

from PIL import Image
from PIL import __version__ as pillow_version

from lora_trainer.messages import Message, say

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def can_read() -> bool:
    """Whether pillow-heif is installed; makes Pillow open such files then."""
    if any(suffix in Image.registered_extensions() for suffix in HEIF_SUFFIXES):
        return True
    try:
        from pillow_heif import register_heif_opener
    except (ImportError, OSError, AttributeError, RuntimeError):  # absent, or made for another Pillow
        return False
    register_heif_opener()
    return True


def is_heif(start: bytes) -> bool:
    """Whether a file that begins with these bytes is one, whatever its ending says (phones also call them .jpg)."""
    return start[4:8] == b"ftyp" and start[8:12] in _BRANDS


def unreadable_reason(suffix: str) -> Message:
    """Why such a file cannot be read here, with the command that changes that."""
    return say(
        "{suffix} pictures of a phone are read with the package pillow-heif, which is not installed: {command}, "
        "restart, or save the picture as JPEG.",
        suffix=suffix,
        command=install_command(pillow_version),
    )


def install_command(pillow: str) -> str:
    """The command, for the Python that runs this, for the newest pillow-heif that this Pillow takes; it changes no other package."""
    major, minor = (int(part) for part in f"{pillow}.0".split(".")[:2])
    newest = "" if (major, minor) >= (11, 1) else "<1" if (major, minor) >= (10, 1) else "<0.17"
    return f'"{sys.executable or "python"}" -m pip install --no-deps "pillow-heif{newest}"'
