"""Aspect ratio buckets by sd-scripts' rule: sizes of about the training area."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

from lora_trainer.data.records import ImageRecord, Verdict

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

Size = tuple[int, int]
UPSCALE_TOLERANCE = 1.01
"""A picture that is scaled up by more than this factor gets the note "small"."""


@attrs.frozen
class BucketChoice:
    """`bucket` size, size that the picture is `resized` to, and `crop` (left, top, width, height) of the resized picture."""

    bucket: Size
    resized: Size
    crop: tuple[int, int, int, int]


def make_bucket_resolutions(resolution: Size, low: int, high: int, step: int) -> list[Size]:
    """All sizes (width, height) whose area is at most that of `resolution`, in multiples of `step`, sides from `low` to `high`.

    sd-scripts' rule: for each width the largest height, both ways round, and the square. The training size itself is always within
    the limits: a `low` above its shorter side, or a `high` below its longer, gives way to it.
    """
    area = resolution[0] * resolution[1]
    low = max(step, min(low, *resolution) // step * step)
    high = -(-max(high, *resolution) // step) * step
    square = int(math.sqrt(area) // step) * step
    sizes = {(square, square)} if square else set()
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes) or [(resolution[0] // 8 * 8, resolution[1] // 8 * 8)]


def select_bucket(size: Size, sizes: Sequence[Size]) -> BucketChoice:
    """The bucket of a picture of `size`: the same size if there is one, else the nearest aspect ratio."""
    width, height = size
    if size in sizes:
        return BucketChoice(size, size, (0, 0, width, height))
    shape = width / height
    bucket = min(sizes, key=lambda candidate: abs(candidate[0] / candidate[1] - shape))
    return fit_to_bucket(size, bucket)


def fit_to_bucket(size: Size, bucket: Size) -> BucketChoice:
    """Scaled to just cover the bucket, and cropped to its center."""
    width, height = size
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    resized = (max(bucket[0], int(width * scale + 0.5)), max(bucket[1], int(height * scale + 0.5)))
    return _center_crop(resized, bucket)


def select_bucket_no_upscale(size: Size, resolution: Size, step: int) -> BucketChoice:
    """The bucket of a picture that must not be scaled up (bucket_no_upscale).

    A picture larger than the training area is scaled down to it, with the side rounded to `step` that changes the aspect ratio less;
    others keep their size. Each side is cropped to a multiple of `step`.
    """
    width, height = size
    area, shape = resolution[0] * resolution[1], width / height
    resized = size
    if width * height > area:
        exact = math.sqrt(area * shape)
        by_width, by_height = _round_to_step(exact, step), _round_to_step(area / exact, step)
        width_error = abs(by_width / max(1, _round_to_step(by_width / shape, step)) - shape)
        height_error = abs(_round_to_step(by_height * shape, step) / max(1, by_height) - shape)
        if width_error < height_error:
            resized = (by_width, int(by_width / shape + 0.5))
        else:
            resized = (int(by_height * shape + 0.5), by_height)
    bucket = (resized[0] // step * step, resized[1] // step * step)
    if 0 in bucket:  # narrower than one step: it has to grow to it
        return fit_to_bucket(size, (max(step, bucket[0]), max(step, bucket[1])))
    return _center_crop(resized, bucket)


def assign_buckets(records: Iterable[ImageRecord], data: DataConfig) -> list[ImageRecord]:
    """The usable records with bucket, resized size, crop and the note "small"; others as they are."""
    resolution: Size = (data.resolution, data.resolution) if isinstance(data.resolution, int) else data.resolution
    sizes = make_bucket_resolutions(resolution, data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps)
    choices: dict[Size, BucketChoice] = {}
    placed = []
    for record in records:
        if not record.usable:
            placed.append(record)
            continue
        size = (record.width, record.height)
        if (
            (train_resolution := record.train_resolution)
            and data.enable_bucket
            and train_resolution[0] * train_resolution[1] <= resolution[0] * resolution[1]
        ):
            placed.append(_with_choice(record, fit_to_bucket(size, train_resolution)))
            continue
        if size not in choices:
            if not data.enable_bucket:
                choices[size] = fit_to_bucket(size, resolution)
            elif data.bucket_no_upscale:
                choices[size] = select_bucket_no_upscale(size, resolution, data.bucket_reso_steps)
            else:
                choices[size] = select_bucket(size, sizes)
        placed.append(_with_choice(record, choices[size]))
    return placed


def bucket_counts(records: Iterable[ImageRecord]) -> list[tuple[Size, int]]:
    """(size, number of usable pictures) of each bucket, sorted by size; repeats and validation pictures do not count."""
    counts = Counter(record.bucket for record in records if record.bucket is not None and record.usable and not record.validation)
    return sorted(counts.items())


def _with_choice(record: ImageRecord, choice: BucketChoice) -> ImageRecord:
    grows = choice.resized[0] > record.width * UPSCALE_TOLERANCE or choice.resized[1] > record.height * UPSCALE_TOLERANCE
    notes: tuple[Verdict, ...] = tuple(note for note in record.notes if note != "small")
    if grows:
        notes = (*notes, "small")
    return attrs.evolve(record, bucket=choice.bucket, resized=choice.resized, crop=choice.crop, notes=notes)


def _center_crop(resized: Size, bucket: Size) -> BucketChoice:
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    return BucketChoice(bucket, resized, (left, top, *bucket))


def _round_to_step(value: float, step: int) -> int:
    """Rounded to the nearest pixel, then down to a multiple of `step`."""
    pixels = int(value + 0.5)
    return pixels - pixels % step
