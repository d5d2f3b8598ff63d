"""Ordinary pictures: coloured shapes of the kind that the small model was trained on, drawn here, with captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, FINE = 64, 4
Pen = ImageDraw.ImageDraw


def _circle(pen: Pen, x: float, y: float, size: float, colour: str) -> None:
    pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)


def _square(pen: Pen, x: float, y: float, size: float, colour: str) -> None:
    pen.rectangle((x - size * 0.85, y - size * 0.85, x + size * 0.85, y + size * 0.85), fill=colour)


def _triangle(pen: Pen, x: float, y: float, size: float, colour: str) -> None:
    pen.polygon([(x, y - size), (x + size, y + size * 0.8), (x - size, y + size * 0.8)], fill=colour)


def _diamond(pen: Pen, x: float, y: float, size: float, colour: str) -> None:
    pen.polygon([(x, y - size), (x + size * 0.75, y), (x, y + size), (x - size * 0.75, y)], fill=colour)


def _cross(pen: Pen, x: float, y: float, size: float, colour: str) -> None:
    pen.rectangle((x - size, y - size * 0.3, x + size, y + size * 0.3), fill=colour)
    pen.rectangle((x - size * 0.3, y - size, x + size * 0.3, y + size), fill=colour)


SHAPES: dict[str, Callable[[Pen, float, float, float, str], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
}
COLOURS = ("red", "green", "orange", "purple", "pink", "brown")
BACKGROUNDS = {"white": (250, 250, 250), "black": (10, 10, 10), "gray": (128, 128, 128), "blue": (40, 70, 220)}


def draw_ordinary(folder: Path, count: int, first: int = 0) -> Path:
    """`count` pictures with captions; shape, colour, background, place and size follow from the number alone."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = list(SHAPES)
    for number in range(first, first + count):
        shape, colour, background = shapes[number % 5], COLOURS[number % 6], list(BACKGROUNDS)[number // 3 % 4]
        image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), BACKGROUNDS[background])
        place = [SIDE * FINE * (0.42 + 0.16 * (number * step % 9) / 8) for step in (2, 5)]
        SHAPES[shape](ImageDraw.Draw(image), *place, SIDE * FINE * (0.26 + 0.02 * (number % 5)), colour)
        image.resize((SIDE, SIDE), Image.Resampling.BOX).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a {colour} {shape} on a {background} background", encoding="utf-8")
    return folder
