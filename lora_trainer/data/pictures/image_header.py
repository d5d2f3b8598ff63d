"""What the first bytes of a picture file tell: size, rotation, transparency, or why it cannot be read. Nothing is decoded."""

from __future__ import annotations

import struct
from pathlib import Path

import attrs
from PIL import Image, ImageFile, UnidentifiedImageError

from lora_trainer.data.records import Verdict
from lora_trainer.messages import Message, say

SMALLEST = 32
"""Pixels that each side of a picture needs."""

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
_EXIF_PLACES = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
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
class Header:
    """Size after EXIF rotation (0 x 0 where unknown), notes, and why the file cannot be used (None: it can)."""

    width: int
    height: int
    notes: tuple[Verdict, ...] = ()
    reason: Message | None = None
    format: str = ""


def read_header(path: Path) -> Header:
    """Never raises: what is wrong with the file is in `reason`."""
    if size := _plain_jpeg(path):
        return _judged(size, (), "JPEG")
    try:
        with path.open("rb") as file, Image.open(file) as image:
            turned = orientation(image, path)
            width, height = _upright_size(image, turned)
            rotated: tuple[Verdict, ...] = ("rotated",) if turned > 1 else ()
            found: tuple[Verdict, ...] = (*rotated, "transparent") if has_alpha(image) else rotated
            kind = image.format or ""
    except UnidentifiedImageError:
        return _unidentified(path)
    except UNREADABLE as error:
        return Header(0, 0, ("broken",), why_unreadable(error))
    return _judged((width, height), found, kind)


def _judged(size: tuple[int, int], found: tuple[Verdict, ...], kind: str) -> Header:
    width, height = size
    if min(size) < SMALLEST:
        reason = say("{width} x {height} pixels: each side needs at least {smallest}.", width=width, height=height, smallest=SMALLEST)
        return Header(width, height, ("too-small", *found), reason, kind)
    return Header(width, height, found, None, kind)


def _plain_jpeg(path: Path) -> tuple[int, int] | None:
    """Size of a JPEG that has nothing before its size but tables and comments; None for anything else, which Pillow then reads."""
    try:
        with path.open("rb", buffering=0) as file:
            data = file.read(2048)
    except OSError:
        return None
    place = 2
    while data.startswith(b"\xff\xd8\xff") and place + 10 <= len(data) and data[place] == 0xFF:
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if kind in _FRAMES:
            bits, height, width, bands = struct.unpack_from(">BHHB", data, place + 4)
            fits = bits == 8 and bands in (1, 3) and width * height and width * height <= (Image.MAX_IMAGE_PIXELS or 0)
            return (width, height) if fits else None
        if kind not in _TABLES:
            return None
        place += 2 + length
    return None


def _upright_size(image: Image.Image, turned: int) -> tuple[int, int]:
    if turned < 5:
        return image.size
    if image.format == "TIFF":  # newer Pillows turn these themselves, in two steps: only a loaded one tells its size
        image.load()
        return image.size if orientation(image) < 5 else image.size[::-1]
    return image.size[::-1]


def orientation(image: Image.Image, path: Path | None = None) -> int:
    """The EXIF orientation 1..8; 1 where there is none or it cannot be read. With `path` a PNG is not decoded for it."""
    unread = image.format == "PNG" and not _EXIF_PLACES & image.info.keys()
    if unread and path is not None and not _png_tells_later(path):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says."""
    method = _TRANSPOSE.get(orientation(image))
    return image if method is None else image.transpose(method)


def has_alpha(image: Image.Image) -> bool:
    """Whether the format of the picture holds transparency (it may still be opaque all over)."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def refuse_cut_off(path: Path, image: Image.Image) -> None:
    """Raises OSError for a PNG or JPEG without its end. Pillow does so itself unless another extension switched that off."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES or image.format not in ("PNG", "JPEG"):
        return
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        if (b"IEND" if image.format == "PNG" else b"\xff\xd9") not in file.read():
            raise OSError("image file is truncated")


def why_unreadable(error: Exception) -> Message:
    """A reason in words for what Pillow or the system raised."""
    if isinstance(error, PermissionError):
        return say("The file may not be read.")
    if isinstance(error, Image.DecompressionBombError):
        return say(
            "The picture has too many pixels; make it smaller than {limit} megapixels.", limit=(Image.MAX_IMAGE_PIXELS or 0) * 2 // 10**6
        )
    if isinstance(error, FileNotFoundError):
        return say("The file is gone.")
    if isinstance(error, MemoryError):
        return say("There is not enough memory to read the picture.")
    return say("The file is damaged ({why}).", why=str(error) or type(error).__name__)


def _unidentified(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as error:
        return Header(0, 0, ("broken",), why_unreadable(error))
    if not begin:
        return Header(0, 0, ("broken",), say("The file is empty."))
    if begin.startswith(_SIGNATURES):
        return Header(0, 0, ("broken",), say("The file is damaged ({why}).", why="header"))
    return Header(0, 0, ("not-a-picture",), say("The file is not a picture, whatever its ending says."))


def _png_tells_later(path: Path) -> bool:
    """Whether a PNG holds EXIF or XMP data behind its pixels; hops from chunk to chunk."""
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
