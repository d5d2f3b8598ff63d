"""HEIC and HEIF pictures, as phones take them: read where the package pillow-heif is installed."""

from __future__ import annotations

from functools import cache

from PIL import Image

from lora_trainer.install_command import install_command
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
        command=install_command("pillow-heif"),
    )
