"""Letters on drawn sheets: a font that this machine has, and text broken to a width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import ImageDraw, ImageFont

FONTS = ("DejaVuSans.ttf", "arial.ttf", "Arial.ttf", "LiberationSans-Regular.ttf", "segoeui.ttf", "Helvetica.ttc")
WIDE_FONTS = ("msyh.ttc", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc", "simsun.ttc", "NotoSansSC-Regular.otf")


def font(size: int, text: str = "") -> Any:
    """A font of this size that has the text's letters, as far as this machine has one; Pillow's own otherwise."""
    wide = any(ord(sign) > 0x2E7F for sign in text)
    for name in (*WIDE_FONTS, *FONTS) if wide else FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()


def write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: str, size: int, like: str = "") -> None:
    """One line, in the font that `like` (the whole text that it is of) would have; letters that the font cannot have become "?"."""
    known = font(size, like or text)
    shown = text if isinstance(known, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
    pen.text(place, shown, fill=colour, font=known)


def wrapped(text: str, width: int, size: int, most: int) -> list[str]:
    """At most `most` lines of `width` pixels; what does not fit ends in "..."."""
    known = font(size, text)
    lines = list(_lines(text, lambda part: _length(known, part) <= width))
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], lines[most - 1].rstrip()[:-3] + "..."]


def _lines(text: str, fits: Any) -> Iterator[str]:
    line = ""
    for sign in text:
        if line and not fits(line + sign):
            cut = line.rfind(" ") + 1
            yield line[:cut].rstrip() if cut else line
            line = line[cut:] if cut else ""
        line += sign
    if line.strip():
        yield line


def _length(known: Any, text: str) -> float:
    if isinstance(known, ImageFont.FreeTypeFont):
        return float(known.getlength(text))
    return float(known.getlength(text.encode("latin-1", "replace").decode("latin-1")))
