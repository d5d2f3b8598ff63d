"""Sizes that pictures are brought to, by sd-scripts' rule: groups of about the training area that keep a picture's shape."""

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
ENLARGED = 1.01
"""A picture that grows by more than this is called small."""


@attrs.frozen
class BucketChoice:
    """`bucket`: size of the group; `resized`: what the picture is scaled to; `crop`: (left, top, width, height) in the resized picture."""

    bucket: Size
    resized: Size
    crop: tuple[int, int, int, int]

    @property
    def kept(self) -> float:
        """Share of the picture's area that is kept, 0..1."""
        return self.crop[2] * self.crop[3] / (self.resized[0] * self.resized[1])


def bucket_sizes(resolution: Size, low: int, high: int, step: int) -> list[Size]:
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


def assign(size: Size, sizes: Sequence[Size]) -> BucketChoice:
    """The group of a picture of `size`: its own where there is one, else the one whose width / height is nearest."""
    width, height = size
    if size in sizes:
        return BucketChoice(size, size, (0, 0, width, height))
    shape = width / height
    bucket = min(sizes, key=lambda candidate: abs(candidate[0] / candidate[1] - shape))
    return covering(size, bucket)


def covering(size: Size, bucket: Size) -> BucketChoice:
    """Scaled so that the picture just covers the bucket, the middle kept."""
    width, height = size
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    resized = (max(bucket[0], int(width * scale + 0.5)), max(bucket[1], int(height * scale + 0.5)))
    return _centred(resized, bucket)


def assign_unenlarged(size: Size, resolution: Size, step: int) -> BucketChoice:
    """The group of a picture that must not grow (bucket_no_upscale).

    One larger than the training area shrinks to it, rounded to `step` by the side that changes its shape less; others keep their
    size; what does not fill the last step is cut.
    """
    width, height = size
    area, shape = resolution[0] * resolution[1], width / height
    resized = size
    if width * height > area:
        exact = math.sqrt(area * shape)
        by_width, by_height = _rounded(exact, step), _rounded(area / exact, step)
        width_error = abs(by_width / max(1, _rounded(by_width / shape, step)) - shape)
        height_error = abs(_rounded(by_height * shape, step) / max(1, by_height) - shape)
        if width_error < height_error:
            resized = (by_width, int(by_width / shape + 0.5))
        else:
            resized = (int(by_height * shape + 0.5), by_height)
    bucket = (resized[0] // step * step, resized[1] // step * step)
    if 0 in bucket:  # narrower than one step: it has to grow to it
        return covering(size, (max(step, bucket[0]), max(step, bucket[1])))
    return _centred(resized, bucket)


def place(records: Iterable[ImageRecord], data: DataConfig) -> list[ImageRecord]:
    """The usable records with bucket, resized size, crop and the note "small"; others as they are."""
    resolution: Size = (data.resolution, data.resolution) if isinstance(data.resolution, int) else data.resolution
    sizes = bucket_sizes(resolution, data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps)
    known: dict[Size, BucketChoice] = {}
    placed = []
    for record in records:
        if not record.usable:
            placed.append(record)
            continue
        size = (record.width, record.height)
        if (named := record.train_resolution) and data.enable_bucket and named[0] * named[1] <= resolution[0] * resolution[1]:
            placed.append(_with(record, covering(size, named)))
            continue
        if size not in known:
            if not data.enable_bucket:
                known[size] = covering(size, resolution)
            elif data.bucket_no_upscale:
                known[size] = assign_unenlarged(size, resolution, data.bucket_reso_steps)
            else:
                known[size] = assign(size, sizes)
        placed.append(_with(record, known[size]))
    return placed


def bucket_counts(records: Iterable[ImageRecord]) -> list[tuple[Size, int]]:
    """How many usable pictures each group holds, without repeats and without validation pictures; by size."""
    counts = Counter(record.bucket for record in records if record.bucket is not None and record.usable and not record.validation)
    return sorted(counts.items())


def _with(record: ImageRecord, choice: BucketChoice) -> ImageRecord:
    grows = choice.resized[0] > record.width * ENLARGED or choice.resized[1] > record.height * ENLARGED
    notes: tuple[Verdict, ...] = tuple(note for note in record.notes if note != "small")
    if grows:
        notes = (*notes, "small")
    return attrs.evolve(record, bucket=choice.bucket, resized=choice.resized, crop=choice.crop, notes=notes)


def _centred(resized: Size, bucket: Size) -> BucketChoice:
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    return BucketChoice(bucket, resized, (left, top, *bucket))


def _rounded(value: float, step: int) -> int:
    """To the nearest pixel, then down to the step."""
    pixels = int(value + 0.5)
    return pixels - pixels % step
