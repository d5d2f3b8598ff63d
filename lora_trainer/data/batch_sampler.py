"""Which pictures come when: the batches of an epoch, a pure function of (seed, epoch) and the pictures."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import attrs

from lora_trainer.data.records import ImageRecord


class Item(NamedTuple):
    """One showing of a picture: its place in the records, and which of its repeats (0, 1, ...) this is."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    repeat: int


def epoch_batches(records: Sequence[ImageRecord], *, batch_size: int | Sequence[int], seed: int, epoch: int) -> list[tuple[Item, ...]]:
    """All batches of an epoch: each trained picture `repeats` times, one bucket of one dataset in a batch.

    `batch_size` is one for all, or one for each dataset. The last batch of a bucket may be smaller.
    """
    groups: dict[Group, list[Item]] = {}
    for index, record in enumerate(records):
        if _is_trained(record):
            items = groups.setdefault(_group(record), [])
            items.extend(Item(index, repeat) for repeat in range(record.repeats))
    batches: list[tuple[Item, ...]] = []
    for group in sorted(groups):
        dataset, (width, height) = group
        items, size = groups[group], _size(batch_size, dataset)
        random.Random(f"order|{seed}|{epoch}|{width}x{height}" + (f"|{dataset}" if dataset else "")).shuffle(items)
        batches.extend(tuple(items[start : start + size]) for start in range(0, len(items), size))
    random.Random(f"batches|{seed}|{epoch}").shuffle(batches)
    return batches


def batches_per_epoch(records: Iterable[ImageRecord], batch_size: int | Sequence[int]) -> int:
    """Number of batches of every epoch, without drawing them."""
    showings: Counter[Group] = Counter()
    for record in records:
        if _is_trained(record):
            showings[_group(record)] += record.repeats
    return sum(math.ceil(count / _size(batch_size, dataset)) for (dataset, _), count in showings.items())


def steps_per_epoch(records: Iterable[ImageRecord], batch_size: int | Sequence[int], accumulation: int = 1) -> int:
    """Optimizer steps of every epoch: accumulation never crosses its end, so the last step may hold fewer batches."""
    return math.ceil(batches_per_epoch(records, batch_size) / accumulation)


def balanced(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The records with the repeats of regularisation pictures set so that they are shown as often as the others of their dataset.

    sd-scripts' rule: each one its own repeats, in order, until the sum is reached; what is then still missing is spread evenly over
    them. Those that come too late, and those of a dataset without other pictures, get 0 repeats.
    """
    wanted: Counter[int] = Counter()
    places: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        if _is_trained(record) and record.is_reg:
            places.setdefault(record.dataset, []).append(place)
        elif _is_trained(record):
            wanted[record.dataset] += record.repeats
    found = list(records)
    for dataset, own in places.items():
        for place, repeats in zip(own, _shares([records[place].repeats for place in own], wanted[dataset]), strict=True):
            found[place] = attrs.evolve(records[place], repeats=repeats)
    return found


def _shares(repeats: Sequence[int], wanted: int) -> list[int]:
    """How often each is shown so that the sum is `wanted`."""
    shares = []
    left = wanted
    for own in repeats:
        shares.append(min(own, left))
        left -= shares[-1]
    more, rest = divmod(left, len(shares))
    return [share + more + (1 if place < rest else 0) for place, share in enumerate(shares)]


Group = tuple[int, tuple[int, int]]


def _is_trained(record: ImageRecord) -> bool:
    return record.usable and not record.validation


def _group(record: ImageRecord) -> Group:
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.place first")
    return record.dataset, record.bucket


def _size(batch_size: int | Sequence[int], dataset: int) -> int:
    return batch_size if isinstance(batch_size, int) else batch_size[dataset]
