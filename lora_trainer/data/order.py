"""Which pictures come when: the batches of an epoch, a pure function of (seed, epoch) and the pictures."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lora_trainer.data.records import ImageRecord


class Item(NamedTuple):
    """One showing of a picture: its place in the records, and which of its repeats (0, 1, ...) this is."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    repeat: int


def epoch_batches(records: Sequence[ImageRecord], *, batch_size: int, seed: int, epoch: int) -> list[tuple[Item, ...]]:
    """All batches of an epoch: each trained picture `repeats` times, one bucket in a batch, the last batch of a bucket may be smaller."""
    groups: dict[tuple[int, int], list[Item]] = {}
    for index, record in enumerate(records):
        if _is_trained(record):
            items = groups.setdefault(_bucket(record), [])
            items.extend(Item(index, repeat) for repeat in range(record.repeats))
    batches: list[tuple[Item, ...]] = []
    for bucket in sorted(groups):
        items = groups[bucket]
        random.Random(f"order|{seed}|{epoch}|{bucket[0]}x{bucket[1]}").shuffle(items)
        batches.extend(tuple(items[start : start + batch_size]) for start in range(0, len(items), batch_size))
    random.Random(f"batches|{seed}|{epoch}").shuffle(batches)
    return batches


def batches_per_epoch(records: Iterable[ImageRecord], batch_size: int) -> int:
    """Number of batches of every epoch, without drawing them."""
    showings: Counter[tuple[int, int]] = Counter()
    for record in records:
        if _is_trained(record):
            showings[_bucket(record)] += record.repeats
    return sum(math.ceil(count / batch_size) for count in showings.values())


def steps_per_epoch(records: Iterable[ImageRecord], batch_size: int, accumulation: int = 1) -> int:
    """Optimizer steps of every epoch: accumulation never crosses its end, so the last step may hold fewer batches."""
    return math.ceil(batches_per_epoch(records, batch_size) / accumulation)


def _is_trained(record: ImageRecord) -> bool:
    return record.usable and not record.validation


def _bucket(record: ImageRecord) -> tuple[int, int]:
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.place first")
    return record.bucket
