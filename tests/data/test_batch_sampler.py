"""Batches of an epoch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.data.batch_sampler import batches_per_epoch, epoch_batches, steps_per_epoch

from .conftest import record

BUCKETS = [(64, 64), (64, 128), (128, 64)]
one_record = st.tuples(st.sampled_from(BUCKETS), st.integers(1, 12), st.booleans(), st.booleans())


@st.composite
def folders(draw):
    return [
        record(f"{number}.png", bucket=bucket, repeats=repeats, usable=usable, validation=held)
        for number, (bucket, repeats, usable, held) in enumerate(draw(st.lists(one_record, max_size=15)))
    ]


@given(folders(), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.integers(1, 3))
def test_each_picture_comes_as_often_as_it_should_in_batches_of_one_size(records, batch_size, accumulation, seed, epoch):
    batches = epoch_batches(records, batch_size=batch_size, seed=seed, epoch=epoch)
    shown = Counter(item.index for batch in batches for item in batch)
    trained = {index: one.repeats for index, one in enumerate(records) if one.usable and not one.validation}
    assert shown == trained
    assert len({item for batch in batches for item in batch}) == sum(trained.values())
    assert all(item.repeat in range(records[item.index].repeats) for batch in batches for item in batch)
    for batch in batches:
        assert 1 <= len(batch) <= batch_size and len({records[item.index].bucket for item in batch}) == 1
    expected = sum(-(-sum(n for i, n in trained.items() if records[i].bucket == bucket) // batch_size) for bucket in BUCKETS)
    assert len(batches) == batches_per_epoch(records, batch_size) == expected
    groups = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
    assert len(groups) == steps_per_epoch(records, batch_size, accumulation)


def test_the_steps_of_the_guides_example():
    dogs = [record(f"{number}.png", repeats=10) for number in range(50)]
    assert steps_per_epoch(dogs, 1) == 500 and steps_per_epoch(dogs, 4) == 125 and steps_per_epoch(dogs, 4) * 8 == 1000


def test_groups_cost_a_few_steps_more():
    mixed = [
        record(f"{number}.png", repeats=8, bucket=bucket)
        for bucket, count in zip(BUCKETS, (15, 9, 9), strict=True)
        for number in range(count)
    ]
    assert steps_per_epoch(mixed, 2) == 132 and steps_per_epoch(mixed, 5) == 24 + 15 + 15


def test_epochs_and_seeds_differ_and_the_same_is_the_same_in_another_process():
    records = [record(f"{number}.png", repeats=3) for number in range(10)]

    def order(seed, epoch):
        return epoch_batches(records, batch_size=2, seed=seed, epoch=epoch)

    assert order(1, 1) == order(1, 1) and order(1, 1) != order(1, 2) and order(1, 1) != order(2, 1)
    code = (
        "from pathlib import Path; from lora_trainer.data.batch_sampler import *; from lora_trainer.data.records import ImageRecord\n"
        "records = [ImageRecord(Path('x'), str(n), 64, 64, repeats=3, bucket=(64, 64)) for n in range(10)]\n"
        "print([[tuple(item) for item in batch] for batch in epoch_batches(records, batch_size=2, seed=1, epoch=1)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == str([[tuple(item) for item in batch] for batch in order(1, 1)])


def test_groups_are_mixed_over_the_epoch_and_not_one_after_the_other():
    records = [record(f"{number}.png", bucket=BUCKETS[number % 2], repeats=4) for number in range(20)]
    seen = [records[batch[0].index].bucket for batch in epoch_batches(records, batch_size=1, seed=1, epoch=1)]
    assert sum(a != b for a, b in pairwise(seen)) > 20
