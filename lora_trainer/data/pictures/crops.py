"""The part of a picture that the user chose to train on: fractions of its upright size, stored in the config; files stay as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import attrs

from lora_trainer.config.checks.picture_options import parse_crop
from lora_trainer.data.pictures.image_header import MIN_SIDE
from lora_trainer.data.records import ImageRecord, nfc
from lora_trainer.messages import Message, say

Frame = tuple[float, float, float, float]


def frame_box(frame: Frame, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of an upright picture of `size`: rounded, at least 1 x 1."""
    width, height = size
    left, top = min(width - 1, math.floor(frame[0] * width + 0.5)), min(height - 1, math.floor(frame[1] * height + 0.5))
    right, bottom = math.floor(frame[2] * width + 0.5), math.floor(frame[3] * height + 0.5)
    return left, top, max(left + 1, right), max(top + 1, bottom)


def apply_frames(records: Iterable[ImageRecord], crops: Sequence[str]) -> Iterator[ImageRecord]:
    """The records with their frames and the frames' sizes, before buckets are assigned. A too small frame makes a record unusable."""
    frames = {nfc(parsed[0]): parsed[1] for crop in crops if (parsed := parse_crop(crop))}
    for record in records:
        frame = frames.get(record.key)
        if frame is None or not record.width or record.frame is not None:
            yield record
            continue
        left, top, right, bottom = frame_box(frame, (record.width, record.height))
        record = attrs.evolve(record, frame=frame, width=right - left, height=bottom - top)
        if record.usable and min(record.width, record.height) < MIN_SIDE:
            record = attrs.evolve(record, usable=False, notes=("too-small", *record.notes), reason=_too_small(record))
        yield record


def _too_small(record: ImageRecord) -> Message:
    return say(
        "The chosen part has {width} x {height} pixels: each side needs at least {smallest}.",
        width=record.width,
        height=record.height,
        smallest=MIN_SIDE,
    )
