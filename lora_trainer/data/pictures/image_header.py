"""Size, rotation and transparency from a file's header, or why it cannot be read. Nothing is decoded."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import attrs
from PIL import Image, ImageFile, UnidentifiedImageError

from lora_trainer.data.pictures import heif
from lora_trainer.data.records import Verdict
from lora_trainer.files import NotRegular, open_regular
from lora_trainer.messages import Message, say

MIN_SIDE = 32
"""Least pixels of each side."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files, over all of its formats."""

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112
_EXIF_KEYS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
_FRAMES, _TABLES = (0xC0, 0xC1, 0xC2), (0xE0, 0xDB, 0xC4, 0xDD, 0xFE)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@attrs.frozen
class ImageHeader:
    """Size after EXIF rotation (0 x 0 if unknown), notes, and the reason why the file cannot be used (None: it can)."""

    width: int
    height: int
    notes: tuple[Verdict, ...] = ()
    reason: Message | None = None
    format: str = ""


def read_header(path: Path) -> ImageHeader:
    """Reads a file's header. Never raises: errors are in `reason`."""
    if size := _jpeg_size(path):
        return _header(size, (), "JPEG")
    try:
        with open_regular(path) as file, Image.open(file) as image:
            turned = orientation(image, path)
            width, height = _upright_size(image, turned)
            rotated: tuple[Verdict, ...] = ("rotated",) if turned > 1 else ()
            notes: tuple[Verdict, ...] = (*rotated, "transparent") if has_alpha(image) else rotated
            image_format = image.format or ""
    except UnidentifiedImageError:
        return read_header(path) if _is_made_readable(path) else _unidentified_header(path)
    except UNREADABLE as error:
        return ImageHeader(0, 0, ("broken",), unreadable_reason(error))
    return _header((width, height), notes, image_format)


def _header(size: tuple[int, int], notes: tuple[Verdict, ...], image_format: str) -> ImageHeader:
    width, height = size
    if min(size) < MIN_SIDE:
        reason = say("{width} x {height} pixels: each side needs at least {smallest}.", width=width, height=height, smallest=MIN_SIDE)
        return ImageHeader(width, height, ("too-small", *notes), reason, image_format)
    return ImageHeader(width, height, notes, None, image_format)


def _jpeg_size(path: Path) -> tuple[int, int] | None:
    """Size of a JPEG with nothing but tables and comments before it; None for all else, which Pillow then reads."""
    try:
        with open_regular(path, buffering=0) as file:
            data = file.read(2048)
    except OSError:
        return None
    position = 2
    while data.startswith(b"\xff\xd8\xff") and position + 10 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAMES:
            bits, height, width, bands = struct.unpack_from(">BHHB", data, position + 4)
            fits = bits == 8 and bands in (1, 3) and width * height and width * height <= (Image.MAX_IMAGE_PIXELS or 0)
            return (width, height) if fits else None
        if marker not in _TABLES:
            return None
        position += 2 + length
    return None


def _upright_size(image: Image.Image, turned: int) -> tuple[int, int]:
    if turned < 5:
        return image.size
    if image.format == "TIFF":  # newer Pillows turn these themselves, in two steps: only a loaded one tells its size
        image.load()
        return image.size if orientation(image) < 5 else image.size[::-1]
    return image.size[::-1]


def orientation(image: Image.Image, path: Path | None = None) -> int:
    """The EXIF orientation 1..8; 1 if there is none or it cannot be read. With `path` a PNG is not decoded for it."""
    unread = image.format == "PNG" and not _EXIF_KEYS & image.info.keys()
    if unread and path is not None and not _png_has_late_exif(path):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture rotated by its EXIF orientation."""
    method = _TRANSPOSE.get(orientation(image))
    return image if method is None else image.transpose(method)


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture has an alpha channel or transparent colour (it may still be opaque)."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def require_complete(path: Path, image: Image.Image) -> None:
    """Raises OSError for a truncated PNG or JPEG. Pillow does so itself unless another extension allowed truncated images."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES or image.format not in ("PNG", "JPEG"):
        return
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        if (b"IEND" if image.format == "PNG" else b"\xff\xd9") not in file.read():
            raise OSError("image file is truncated")


def unreadable_reason(error: Exception) -> Message:
    """The message for an exception of Pillow or the system."""
    if isinstance(error, PermissionError):
        return say("The file may not be read.")
    if isinstance(error, Image.DecompressionBombError):
        return say(
            "The picture has too many pixels; make it smaller than {limit} megapixels.", limit=(Image.MAX_IMAGE_PIXELS or 0) * 2 // 10**6
        )
    if isinstance(error, FileNotFoundError):
        return say("The file is gone.")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return say("The file is a link to itself.")
    if isinstance(error, NotRegular):
        return say("It is not a regular file.")
    if isinstance(error, MemoryError):
        return say("There is not enough memory to read the picture.")
    return say("The file is damaged ({why}).", why=str(error) or type(error).__name__)


def _is_made_readable(path: Path) -> bool:
    """Whether it is a phone's picture by another ending, which Pillow was not made to read before now."""
    known = len(Image.OPEN)
    try:
        with open_regular(path) as file:
            return heif.is_heif(file.read(12)) and heif.can_read() and len(Image.OPEN) > known
    except OSError:
        return False


def _unidentified_header(path: Path) -> ImageHeader:
    try:
        with open_regular(path) as file:
            signature = file.read(12)
    except OSError as error:
        return ImageHeader(0, 0, ("broken",), unreadable_reason(error))
    if not signature:
        return ImageHeader(0, 0, ("broken",), say("The file is empty."))
    if heif.is_heif(signature):
        return ImageHeader(0, 0, ("not-a-picture",), heif.unreadable_reason("HEIC"))
    if signature.startswith(_SIGNATURES):
        return ImageHeader(0, 0, ("broken",), say("The file is damaged ({why}).", why="header"))
    return ImageHeader(0, 0, ("not-a-picture",), say("The file is not a picture, whatever its ending says."))


def _png_has_late_exif(path: Path) -> bool:
    """Whether a PNG has EXIF or XMP data after its pixels; reads chunk headers only."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            if kind == b"IEND":
                return False
            file.seek(length + 4, 1)
    return False
