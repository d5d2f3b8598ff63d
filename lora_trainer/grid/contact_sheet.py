"""grid.png: all cells of a grid on one sheet, with weights, epochs, validation losses and the suggested cell."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lora_trainer.data.pictures import text_drawing
from lora_trainer.data.pictures.text_drawing import font
from lora_trainer.files import write_atomically

MIN_SIDE, MAX_SIDE = 128, 256
GAP, MARGIN, LABELS, TRACK = 8, 24, 92, 190
PAPER, INK, FAINT, LINE = "#ffffff", "#111827", "#6b7280", "#d1d5db"
STAR, LOWEST = "#d9480f", "#2563eb"


def write(folder: Path, content: Mapping[str, Any], losses: Mapping[int, float | None]) -> Path:
    """Draws grid.png into `folder` from the content of its grid.json; missing cells stay blank. Returns its path."""
    buffer = io.BytesIO()
    draw_sheet(folder, content, losses).save(buffer, "PNG", optimize=True)
    path = folder / "grid.png"
    write_atomically(path, buffer.getvalue())
    return path


def draw_sheet(folder: Path, content: Mapping[str, Any], losses: Mapping[int, float | None]) -> Image.Image:
    """The sheet as an image."""
    width, height = _cell_size(content["width"], content["height"])
    columns, rows = list(content["weights"]), list(content["epochs"])
    measured = {epoch: loss for epoch in rows if (loss := losses.get(epoch)) is not None}
    grid_width = LABELS + len(columns) * (width + GAP) + (TRACK if measured else 0)
    sheet_width = max(grid_width, 420) + 2 * MARGIN
    title = _wrapped(str(content["prompt"]), sheet_width)
    verdict = _wrapped(_verdict(content), sheet_width)
    top = MARGIN + 20 * len(title) + 30
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * (height + GAP) + 20 * len(verdict) + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    _lines(pen, title, MARGIN, INK)
    _headings(pen, columns, width, top, bool(measured))
    for number, epoch in enumerate(rows):
        y = top + number * (height + GAP)
        is_lowest = bool(measured) and measured.get(epoch) == min(measured.values())
        pen.text((MARGIN, y + height // 2 - 8), f"epoch {epoch}", fill=INK, font=font(15, ""))
        for column, weight in enumerate(columns):
            corner = (MARGIN + LABELS + column * (width + GAP), y)
            _cell(sheet, pen, folder, content, (epoch, weight), corner, (width, height))
        if epoch in measured:
            left = MARGIN + LABELS + len(columns) * (width + GAP) + 12
            _loss(pen, measured, epoch, is_lowest, left, y + height // 2)
    _lines(pen, verdict, top + len(rows) * (height + GAP) + MARGIN // 2, INK)
    return sheet


def _cell_size(width: int, height: int) -> tuple[int, int]:
    """The displayed size: small pictures are enlarged, large ones reduced, with the same aspect ratio."""
    side = max(width, height)
    scale = MAX_SIDE / side if side > MAX_SIDE else math.ceil(MIN_SIDE / side) if side < MIN_SIDE else 1.0
    return round(width * scale), round(height * scale)


def _cell(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    folder: Path,
    content: Mapping[str, Any],
    cell: tuple[int, float],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    entry = next((entry for entry in content["cells"] if (entry["epoch"], entry["weight"]) == cell), None)
    left, top = corner
    box = (left, top, left + size[0] - 1, top + size[1] - 1)
    if entry is not None and (folder / entry["image"]).is_file():
        with Image.open(folder / entry["image"]) as picture:
            sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), corner)
    pen.rectangle(box, outline=LINE)
    best = content["best"]
    if best is not None and (best["epoch"], best["weight"]) == cell:
        pen.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), outline=STAR, width=3)
        pen.ellipse((box[2] - 11, box[1] - 13, box[2] + 13, box[1] + 11), fill=STAR)
        pen.polygon(_star(box[2] + 1, box[1] - 1, 8), fill=PAPER)


def _headings(pen: ImageDraw.ImageDraw, columns: list[float], width: int, top: int, losses: bool) -> None:
    small = font(13, "")
    pen.text((MARGIN, top - 24), "weight", fill=FAINT, font=small)
    for column, weight in enumerate(columns):
        text = f"{weight:g}"
        middle = MARGIN + LABELS + column * (width + GAP) + (width - pen.textlength(text, font=font(15, ""))) / 2
        pen.text((middle, top - 26), text, fill=INK, font=font(15, ""))
    if losses:
        pen.text((MARGIN + LABELS + len(columns) * (width + GAP) + 12, top - 24), "validation loss", fill=FAINT, font=small)


def _loss(pen: ImageDraw.ImageDraw, measured: Mapping[int, float], epoch: int, is_lowest: bool, left: int, middle: int) -> None:
    """The loss as text, and a dot on a track from the lowest to the highest."""
    colour = LOWEST if is_lowest else FAINT
    pen.text((left, middle - 8), f"{measured[epoch]:.4f}", fill=INK, font=font(14, ""))
    start, end = left + 64, left + 160
    low, high = min(measured.values()), max(measured.values())
    x = start + (end - start) * ((measured[epoch] - low) / (high - low) if high > low else 0.0)
    pen.line((start, middle, end, middle), fill=LINE, width=2)
    pen.ellipse((x - 5, middle - 5, x + 5, middle + 5), fill=colour)


def _verdict(content: Mapping[str, Any]) -> str:
    best = content["best"]
    if best is None:
        return str(content.get("sentence") or "")
    return f"Suggested: epoch {best['epoch']} at {best['weight']:g}. {best['because']}"


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turns = [(math.pi * number / 5 - math.pi / 2, radius if number % 2 == 0 else radius * 0.45) for number in range(10)]
    return [(x + length * math.cos(turn), y + length * math.sin(turn)) for turn, length in turns]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(20, (width - 2 * MARGIN) // 8))


def _lines(pen: ImageDraw.ImageDraw, lines: list[str], top: int, colour: str) -> None:
    for number, line in enumerate(lines):
        text_drawing.write(pen, (MARGIN, top + 20 * number), line, colour, 15)
