"""grid.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageColor

from lora_trainer.grid.contact_sheet import STAR, draw_sheet, write

COLOURS = {(1, 0.5): "red", (1, 1.0): "green", (2, 0.5): "blue"}


def content(folder: Path, *, best: dict[str, Any] | None = None, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    cells = []
    for (epoch, weight), colour in COLOURS.items():
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
        cells.append({"epoch": epoch, "weight": weight, "image": f"{colour}.png"})
    shape = {"width": size[0], "height": size[1], "prompt": "月亮 a moon " * 20, "sentence": "No cell shows the concept."}
    return {"cells": cells, "weights": [0.5, 1.0], "epochs": [1, 2], "best": best, **shape}


def share(sheet: Image.Image, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = ImageColor.getrgb(colour)
    return sum(count for count, found in sheet.getcolors(1 << 24) if found == wanted)


def test_every_drawn_cell_is_on_the_sheet_and_small_ones_are_enlarged(tmp_path: Path):
    sheet = draw_sheet(tmp_path, content(tmp_path), {1: 0.5, 2: 0.4})
    for colour in COLOURS.values():
        assert share(sheet, colour) > 0.9 * 128 * 128


def test_the_suggested_cell_is_marked(tmp_path: Path):
    assert share(draw_sheet(tmp_path, content(tmp_path), {}), STAR) == 0
    best = {"epoch": 1, "weight": 1.0, "because": "Best."}
    assert share(draw_sheet(tmp_path, content(tmp_path, best=best), {}), STAR) > 500


def test_large_pictures_are_brought_down_and_keep_their_shape(tmp_path: Path):
    sheet = draw_sheet(tmp_path, content(tmp_path, size=(512, 1024)), {1: None, 2: None})
    assert share(sheet, "red") == (128 - 2) * (256 - 2)  # less the frame


def test_validation_loss_takes_room_only_where_there_is_one(tmp_path: Path):
    wide = draw_sheet(tmp_path, content(tmp_path, size=(256, 256)), {1: 0.5, 2: 0.4})
    assert wide.width > draw_sheet(tmp_path, content(tmp_path, size=(256, 256)), {1: None, 2: None}).width


def test_the_sheet_is_written_whole(tmp_path: Path):
    path = write(tmp_path, content(tmp_path), {1: 0.5, 2: 0.4})
    assert path == tmp_path / "grid.png" and Image.open(path).format == "PNG"
