"""The first batches of a run as a contact sheet and as JSON, to look at before training."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from lora_trainer.data.pictures.crops import frame_box
from lora_trainer.data.pictures.images import open_picture
from lora_trainer.data.pictures.text_drawing import wrap, write
from lora_trainer.data.records import ImageRecord
from lora_trainer.files import write_atomically
from lora_trainer.messages import Message, say
from lora_trainer.train.inputs.examples import TrainingExample, first_batches, loss_mask, pixels

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import TrainingDataset

BATCHES, MOST_PICTURES = 6, 48
SIDE, GAP, MARGIN, LINE, LINES, COLUMNS = 176, 10, 20, 16, 4, 4
TILE = 2 * SIDE + GAP
PAPER, INK, FAINT, FRAME, NOT_LEARNED = "#ffffff", "#111827", "#6b7280", "#d9480f", (220, 38, 38)


def draw_batches(
    dataset: TrainingDataset, *, seed: int, accumulation: int = 1, total_steps: int = 0, language: str = "en"
) -> tuple[bytes, dict[str, Any]]:
    """The contact sheet as PNG, and its contents: {"seed", "total_steps", "batches"}. Raises DatasetError."""
    examples: list[list[TrainingExample]] = []
    for batch in first_batches(dataset, seed=seed, count=BATCHES, accumulation=accumulation, total_steps=total_steps):
        room = MOST_PICTURES - sum(map(len, examples))
        if room > 0:
            examples.append(batch[:room])
    packed = io.BytesIO()
    _draw_sheet(examples, dataset, language).save(packed, "PNG", optimize=True)
    return packed.getvalue(), {"seed": seed, "total_steps": total_steps, "batches": [_batch_json(batch, dataset) for batch in examples]}


def write_batches(folder: Path, sheet: bytes, document: dict[str, Any]) -> dict[str, Any]:
    """Writes batches.png and batches.json into `folder`; returns the document with their paths as "files"."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "batches.png", sheet)
    write_atomically(folder / "batches.json", json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8"))
    return {**document, "files": [str(folder / "batches.png"), str(folder / "batches.json")]}


def _batch_json(batch: Sequence[TrainingExample], dataset: TrainingDataset) -> dict[str, Any]:
    bucket = batch[0].record.bucket
    return {"bucket": list(bucket or ()), "epoch": batch[0].key[1], "pictures": [_example_json(example, dataset) for example in batch]}


def _example_json(example: TrainingExample, dataset: TrainingDataset) -> dict[str, Any]:
    record, weights = example.record, loss_mask(example, dataset)
    return {
        "key": record.key,
        "path": str(record.path),
        "repeat": example.key[3],
        "size": [record.width, record.height],
        "resized": list(record.resized or ()),
        "crop": list(record.crop or ()),
        "frame": list(record.frame) if record.frame else None,
        "kept": round(record.kept_area, 4),
        "flipped": example.flipped,
        "hue": round(example.colours.hue, 4),
        "gamma": round(example.colours.gamma, 4),
        "mask": None if weights is None else round(float(weights.mean()), 4),
        "regularisation": record.is_reg,
        "caption": example.caption,
    }


def _draw_sheet(examples: Sequence[Sequence[TrainingExample]], dataset: TrainingDataset, language: str) -> Image.Image:
    """Rows by batch; each tile has the whole picture with its crop, the training input on the right, and the caption below."""
    columns = max(1, min(max((len(batch) for batch in examples), default=1), COLUMNS))
    tiles_by_batch = [[_draw_tile(example, dataset, language) for example in batch] for batch in examples]
    heights = [[max(tile.height for tile in batch[at : at + columns]) for at in range(0, len(batch), columns)] for batch in tiles_by_batch]
    high = sum(2 * LINE + sum(rows) + len(rows) * GAP for rows in heights)
    sheet = Image.new("RGB", (columns * (TILE + 2 * GAP) + 2 * MARGIN, max(1, high) + 2 * MARGIN), PAPER)
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for number, (batch, tiles, rows) in enumerate(zip(examples, tiles_by_batch, heights, strict=True), start=1):
        write(pen, (MARGIN, top), _heading(number, batch).text(language), INK, 15)
        top += 2 * LINE
        for row, height in enumerate(rows):
            for column, tile in enumerate(tiles[row * columns : (row + 1) * columns]):
                sheet.paste(tile, (MARGIN + column * (TILE + 2 * GAP), top))
            top += height + GAP
    return sheet


def _heading(number: int, batch: Sequence[TrainingExample]) -> Message:
    width, height = batch[0].record.bucket or (0, 0)
    return say("Batch {number}: {width} x {height}, epoch {epoch}", number=number, width=width, height=height, epoch=batch[0].key[1])


def _draw_tile(example: TrainingExample, dataset: TrainingDataset, language: str) -> Image.Image:
    picture, box = _whole_picture(example.record)
    trained = _fit_side(Image.fromarray(_tint_masked(pixels(example), loss_mask(example, dataset))))
    caption = example.caption or say("(no words this time)").text(language)
    lines = wrap(caption, TILE, 12, LINES)
    below = max(picture.height, trained.height) + 2
    tile = Image.new("RGB", (TILE, below + (len(lines) + 1) * LINE), PAPER)
    pen = ImageDraw.Draw(tile)
    tile.paste(picture, (0, 0))
    pen.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline=FRAME, width=2)
    tile.paste(trained, (SIDE + GAP, 0))
    write(pen, (0, below), wrap("  ".join([example.record.key, *_marks(example, language)]), TILE, 11, 1)[0], FAINT, 11)
    for number, line in enumerate(lines, start=1):
        write(pen, (0, below + number * LINE), line, INK, 12, like=caption)
    return tile


def _marks(example: TrainingExample, language: str) -> list[str]:
    marks = [
        (example.flipped, say("mirrored")),
        (example.record.is_reg, say("regularisation")),
        (example.key[3], say("showing {n}", n=example.key[3] + 1)),
    ]
    return [message.text(language) for applies, message in marks if applies]


def _whole_picture(record: ImageRecord) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The upright picture scaled to SIDE, and its crop (left, top, right, bottom) in it."""
    picture = open_picture(record.path)
    frame = frame_box(record.frame, picture.size) if record.frame is not None else (0, 0, *picture.size)
    wide, high = frame[2] - frame[0], frame[3] - frame[1]
    resized, crop = record.resized or (wide, high), record.crop or (0, 0, wide, high)
    across, down = wide / resized[0], high / resized[1]
    cut = (
        frame[0] + crop[0] * across,
        frame[1] + crop[1] * down,
        frame[0] + (crop[0] + crop[2]) * across,
        frame[1] + (crop[1] + crop[3]) * down,
    )
    small = _fit_side(picture)
    scale = small.width / picture.width, small.height / picture.height
    box = (round(cut[0] * scale[0]), round(cut[1] * scale[1]), round(cut[2] * scale[0]), round(cut[3] * scale[1]))
    return small, box


def _fit_side(picture: Image.Image) -> Image.Image:
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _tint_masked(picture: Any, weights: Any) -> Any:
    """The pixels [h, w, 3], red where the mask excludes them; `weights` [h/8, w/8] or None."""
    if weights is None:
        return picture
    share = np.repeat(np.repeat(weights, 8, axis=0), 8, axis=1)[..., None]
    tinted = picture * 0.35 + np.asarray(NOT_LEARNED, dtype=np.float32) * 0.65
    return (picture * share + tinted * (1.0 - share)).astype(np.uint8)
