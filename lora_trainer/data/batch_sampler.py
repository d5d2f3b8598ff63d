"""The batches of an epoch, as a pure function of (seed, epoch) and the records."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import attrs

from lora_trainer.data.records import ImageRecord


class Item(NamedTuple):
    """One showing of a picture: its index in the records, and which of its repeats (0, 1, ...) it is."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    repeat: int


def epoch_batches(records: Sequence[ImageRecord], *, batch_size: int | Sequence[int], seed: int, epoch: int) -> list[tuple[Item, ...]]:
    """All batches of an epoch, shuffled: each trained picture `repeats` times, each batch from one bucket of one dataset.

    `batch_size`: one for all datasets, or one for each. The last batch of a bucket may be smaller.
    """
    groups: dict[BatchGroup, list[Item]] = {}
    for index, record in enumerate(records):
        if _is_trained(record):
            items = groups.setdefault(_batch_group(record), [])
            items.extend(Item(index, repeat) for repeat in range(record.repeats))
    batches: list[tuple[Item, ...]] = []
    for group in sorted(groups):
        dataset, (width, height) = group
        items, size = groups[group], _batch_size_of(batch_size, dataset)
        random.Random(f"order|{seed}|{epoch}|{width}x{height}" + (f"|{dataset}" if dataset else "")).shuffle(items)
        batches.extend(tuple(items[start : start + size]) for start in range(0, len(items), size))
    random.Random(f"batches|{seed}|{epoch}").shuffle(batches)
    return batches


def batches_per_epoch(records: Iterable[ImageRecord], batch_size: int | Sequence[int]) -> int:
    """Number of batches of an epoch."""
    showings: Counter[BatchGroup] = Counter()
    for record in records:
        if _is_trained(record):
            showings[_batch_group(record)] += record.repeats
    return sum(math.ceil(count / _batch_size_of(batch_size, dataset)) for (dataset, _), count in showings.items())


def steps_per_epoch(records: Iterable[ImageRecord], batch_size: int | Sequence[int], accumulation: int = 1) -> int:
    """Optimizer steps of an epoch. Accumulation never crosses its end, so the last step may have fewer batches."""
    return math.ceil(batches_per_epoch(records, batch_size) / accumulation)


def balance_regularisation(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The records with repeats of regularisation pictures set so that they are shown as often as the others of their dataset.

    sd-scripts' rule: each gets its own repeats, in order, until the sum is reached; if it is not, the rest is spread evenly. Pictures
    beyond the sum, and those of a dataset without other pictures, get 0 repeats.
    """
    showings: Counter[int] = Counter()
    reg_indices: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        if _is_trained(record) and record.is_reg:
            reg_indices.setdefault(record.dataset, []).append(index)
        elif _is_trained(record):
            showings[record.dataset] += record.repeats
    balanced = list(records)
    for dataset, indices in reg_indices.items():
        for index, repeats in zip(
            indices, _repeats_with_sum([records[index].repeats for index in indices], showings[dataset]), strict=True
        ):
            balanced[index] = attrs.evolve(records[index], repeats=repeats)
    return balanced


def _repeats_with_sum(repeats: Sequence[int], total: int) -> list[int]:
    """Repeats of each picture, with the sum `total`."""
    balanced = []
    remaining = total
    for count in repeats:
        balanced.append(min(count, remaining))
        remaining -= balanced[-1]
    more, rest = divmod(remaining, len(balanced))
    return [repeats_of_one + more + (1 if index < rest else 0) for index, repeats_of_one in enumerate(balanced)]


BatchGroup = tuple[int, tuple[int, int]]


def _is_trained(record: ImageRecord) -> bool:
    return record.usable and not record.validation


def _batch_group(record: ImageRecord) -> BatchGroup:
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.assign_buckets first")
    return record.dataset, record.bucket


def _batch_size_of(batch_size: int | Sequence[int], dataset: int) -> int:
    return batch_size if isinstance(batch_size, int) else batch_size[dataset]
