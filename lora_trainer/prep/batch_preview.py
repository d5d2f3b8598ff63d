"""The first batches as they will be trained, to look at before training: a sheet and the same as JSON."""

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
from lora_trainer.data.pictures.text_drawing import wrapped, write
from lora_trainer.data.records import ImageRecord
from lora_trainer.files import write_atomically
from lora_trainer.messages import Message, say
from lora_trainer.train.inputs.examples import TrainingExample, batches, loss_mask, pixels

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import TrainingDataset

BATCHES, MOST_PICTURES = 6, 48
SIDE, GAP, MARGIN, LINE, LINES, COLUMNS = 176, 10, 20, 16, 4, 4
TILE = 2 * SIDE + GAP
PAPER, INK, FAINT, FRAME, NOT_LEARNED = "#ffffff", "#111827", "#6b7280", "#d9480f", (220, 38, 38)


def draw_batches(
    pictures: TrainingDataset, *, seed: int, accumulation: int = 1, total_steps: int = 0, language: str = "en"
) -> tuple[bytes, dict[str, Any]]:
    """The sheet as PNG, and what it shows: {"seed", "total_steps", "batches"}. Raises DatasetError."""
    found: list[list[TrainingExample]] = []
    for batch in batches(pictures, seed=seed, count=BATCHES, accumulation=accumulation, total_steps=total_steps):
        room = MOST_PICTURES - sum(map(len, found))
        if room > 0:
            found.append(batch[:room])
    packed = io.BytesIO()
    _sheet(found, pictures, language).save(packed, "PNG", optimize=True)
    return packed.getvalue(), {"seed": seed, "total_steps": total_steps, "batches": [_batch(batch, pictures) for batch in found]}


def write_batches(folder: Path, sheet: bytes, told: dict[str, Any]) -> dict[str, Any]:
    """Writes batches.png and batches.json into `folder`; returns what is shown with the paths of both as "files"."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "batches.png", sheet)
    write_atomically(folder / "batches.json", json.dumps(told, ensure_ascii=False, indent=1).encode("utf-8"))
    return {**told, "files": [str(folder / "batches.png"), str(folder / "batches.json")]}


def _batch(batch: Sequence[TrainingExample], pictures: TrainingDataset) -> dict[str, Any]:
    bucket = batch[0].record.bucket
    return {"bucket": list(bucket or ()), "epoch": batch[0].key[1], "pictures": [_picture(shown, pictures) for shown in batch]}


def _picture(shown: TrainingExample, pictures: TrainingDataset) -> dict[str, Any]:
    record, weights = shown.record, loss_mask(shown, pictures)
    return {
        "key": record.key,
        "path": str(record.path),
        "repeat": shown.key[3],
        "size": [record.width, record.height],
        "resized": list(record.resized or ()),
        "crop": list(record.crop or ()),
        "frame": list(record.frame) if record.frame else None,
        "kept": round(record.kept, 4),
        "flipped": shown.flipped,
        "hue": round(shown.colours.hue, 4),
        "gamma": round(shown.colours.gamma, 4),
        "mask": None if weights is None else round(float(weights.mean()), 4),
        "regularisation": record.is_reg,
        "caption": shown.caption,
    }


def _sheet(found: Sequence[Sequence[TrainingExample]], pictures: TrainingDataset, language: str) -> Image.Image:
    """A row for each batch; each picture whole with its cut on the left, as it is trained on the right, its caption below."""
    columns = max(1, min(max((len(batch) for batch in found), default=1), COLUMNS))
    drawn = [[_tile(shown, pictures, language) for shown in batch] for batch in found]
    heights = [[max(tile.height for tile in batch[at : at + columns]) for at in range(0, len(batch), columns)] for batch in drawn]
    high = sum(2 * LINE + sum(rows) + len(rows) * GAP for rows in heights)
    sheet = Image.new("RGB", (columns * (TILE + 2 * GAP) + 2 * MARGIN, max(1, high) + 2 * MARGIN), PAPER)
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for number, (batch, tiles, rows) in enumerate(zip(found, drawn, heights, strict=True), start=1):
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


def _tile(shown: TrainingExample, pictures: TrainingDataset, language: str) -> Image.Image:
    whole, box = _whole(shown.record)
    trained = _small(Image.fromarray(_with_mask(pixels(shown), loss_mask(shown, pictures))))
    caption = shown.caption or say("(no words this time)").text(language)
    lines = wrapped(caption, TILE, 12, LINES)
    below = max(whole.height, trained.height) + 2
    tile = Image.new("RGB", (TILE, below + (len(lines) + 1) * LINE), PAPER)
    pen = ImageDraw.Draw(tile)
    tile.paste(whole, (0, 0))
    pen.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline=FRAME, width=2)
    tile.paste(trained, (SIDE + GAP, 0))
    write(pen, (0, below), wrapped("  ".join([shown.record.key, *_marks(shown, language)]), TILE, 11, 1)[0], FAINT, 11)
    for number, line in enumerate(lines, start=1):
        write(pen, (0, below + number * LINE), line, INK, 12, like=caption)
    return tile


def _marks(shown: TrainingExample, language: str) -> list[str]:
    marks = [
        (shown.flipped, say("mirrored")),
        (shown.record.is_reg, say("regularisation")),
        (shown.key[3], say("showing {n}", n=shown.key[3] + 1)),
    ]
    return [message.text(language) for holds, message in marks if holds]


def _whole(record: ImageRecord) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The upright picture brought to SIDE, and where in it the cut is."""
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
    small = _small(picture)
    scale = small.width / picture.width, small.height / picture.height
    box = (round(cut[0] * scale[0]), round(cut[1] * scale[1]), round(cut[2] * scale[0]), round(cut[3] * scale[1]))
    return small, box


def _small(picture: Image.Image) -> Image.Image:
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _with_mask(picture: Any, weights: Any) -> Any:
    """What is not learned is tinted red."""
    if weights is None:
        return picture
    share = np.repeat(np.repeat(weights, 8, axis=0), 8, axis=1)[..., None]
    tinted = picture * 0.35 + np.asarray(NOT_LEARNED, dtype=np.float32) * 0.65
    return (picture * share + tinted * (1.0 - share)).astype(np.uint8)
