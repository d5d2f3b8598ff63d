"""Text on drawn sheets: a font of this machine, and line breaks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from PIL import ImageDraw, ImageFont

FONTS = ("DejaVuSans.ttf", "arial.ttf", "Arial.ttf", "LiberationSans-Regular.ttf", "segoeui.ttf", "Helvetica.ttc")
WIDE_FONTS = ("msyh.ttc", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc", "simsun.ttc", "NotoSansSC-Regular.otf")


def font(size: int, text: str = "") -> Any:
    """A font of this size with the text's letters, if the machine has one, else Pillow's own."""
    wide = any(ord(letter) > 0x2E7F for letter in text)
    for name in (*WIDE_FONTS, *FONTS) if wide else FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()


def write(pen: ImageDraw.ImageDraw, position: tuple[int, int], text: str, colour: str, size: int, like: str = "") -> None:
    """Draws one line in the font of `like` (the whole text); letters that are not in the font become "?"."""
    typeface = font(size, like or text)
    drawable = text if isinstance(typeface, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
    pen.text(position, drawable, fill=colour, font=typeface)


def wrap(text: str, width: int, size: int, max_lines: int) -> list[str]:
    """At most `max_lines` lines of `width` pixels; longer text ends in "..."."""
    typeface = font(size, text)
    text = text[: width * max_lines]  # no letter is narrower than a pixel, but for some that are drawn over others
    widths = {letter: _length(typeface, letter) for letter in set(text)}
    lines = list(islice(_break_lines(text, lambda part: sum(map(widths.__getitem__, part)) <= width), max_lines + 1))
    if len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 1], lines[max_lines - 1].rstrip()[:-3] + "..."]


def _break_lines(text: str, fits: Any) -> Iterator[str]:
    line = ""
    for letter in text:
        if line and not fits(line + letter):
            cut = line.rfind(" ") + 1
            yield line[:cut].rstrip() if cut else line
            line = line[cut:] if cut else ""
        line += letter
    if line.strip():
        yield line


def _length(typeface: Any, text: str) -> float:
    if isinstance(typeface, ImageFont.FreeTypeFont):
        return float(typeface.getlength(text))
    return float(typeface.getlength(text.encode("latin-1", "replace").decode("latin-1")))
