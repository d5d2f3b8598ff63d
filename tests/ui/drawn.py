"""Pictures for the tests of the page: a figure before a place, drawn with a few shapes."""

from __future__ import annotations

import io
import random
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter

PLACES = {
    "sea": ((158, 209, 245), (94, 158, 172), (222, 196, 152)),
    "city": ((74, 66, 120), (226, 140, 110), (60, 44, 66)),
    "forest": ((150, 190, 130), (96, 140, 86), (60, 92, 62)),
    "snow": ((206, 220, 240), (224, 232, 244), (200, 208, 224)),
    "cafe": ((120, 88, 62), (98, 70, 50), (70, 48, 34)),
    "night": ((28, 28, 60), (34, 34, 72), (18, 18, 40)),
}


@lru_cache(maxsize=512)
def figure(width: int, height: int, place: str = "sea", learnt: float = 1.0, seed: int = 0) -> bytes:
    """A PNG: `learnt` 0 is somebody else (brown hair, grey coat), 1 the subject (silver hair, red scarf, blue coat)."""
    top, middle, bottom = PLACES[place]
    image = Image.new("RGB", (width, height), middle)
    draw = ImageDraw.Draw(image)
    for y in range(height // 2):
        share = y / (height / 2)
        draw.line((0, y, width, y), tuple(int(a + (255 - a) * share * 0.35) for a in top))
    draw.rectangle((0, int(height * 0.68), width, height), bottom)
    image = image.filter(ImageFilter.GaussianBlur(max(1, width // 60)))
    draw = ImageDraw.Draw(image)
    shift = random.Random(seed).uniform(-0.04, 0.04)
    size = min(width, height)
    x, y = width * (0.5 + shift), height * 0.46

    def blend(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
        return tuple(int(a + (b - a) * learnt) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]

    def ellipse(cx: float, cy: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        draw.ellipse((cx - rx * size, cy - ry * size, cx + rx * size, cy + ry * size), colour)

    hair, coat, scarf = (
        blend((106, 68, 44), (196, 200, 216)),
        blend((122, 126, 116), (36, 48, 92)),
        blend((122, 126, 116), (192, 44, 44)),
    )
    ellipse(x, y + 0.42 * size, 0.32, 0.34, coat)
    draw.rectangle((x - 0.32 * size, y + 0.42 * size, x + 0.32 * size, height), coat)
    ellipse(x, y, 0.24, 0.27, hair)
    draw.rectangle((x - 0.22 * size, y, x + 0.22 * size, y + 0.26 * size), hair)
    ellipse(x, y + 0.03 * size, 0.16, 0.19, (240, 214, 196))
    for side in (-1, 1):
        ellipse(x + side * 0.07 * size, y + 0.02 * size, 0.022, 0.034, (30, 110, 120))
        ellipse(x + side * 0.1 * size, y + 0.1 * size, 0.026, 0.018, (226, 160, 150))
    draw.arc((x - 0.035 * size, y + 0.08 * size, x + 0.035 * size, y + 0.14 * size), 20, 160, (180, 70, 70), max(1, size // 100))
    ellipse(x, y + 0.24 * size, 0.16, 0.075, scarf)
    draw.rectangle((x + 0.03 * size, y + 0.26 * size, x + 0.1 * size, y + 0.5 * size), scarf)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
