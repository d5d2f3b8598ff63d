"""A run that is killed at any moment goes on from its last state, ends as if nothing had been, and no file is lost or half-written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.train.kills import kill_once, whole_run
from tests.train.resume_runs import OPTIMIZERS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
FILES = ["small-step00000002.safetensors", "small-step00000004.safetensors", "small-step00000006.safetensors"]
FILES = sorted([*FILES, "small-step00000008.safetensors", "small.safetensors"])


def check(found: dict, names: bool = True) -> None:
    assert found["resumed"] and found["same"], found
    assert (found["broken"], found["lost"], found["left"]) == ([], [], []), found
    assert found["named"] == FILES, found


def test_a_run_that_is_killed_anywhere_resumes_and_ends_with_the_same_weights(tmp_path: Path):
    whole, chance = whole_run(tmp_path), random.Random(1)
    kinds = [{"inside_a_save": False, "first_state_only": True}, {"inside_a_save": True}, {"inside_a_save": False}]
    for number, kind in enumerate(kinds):
        check(kill_once(tmp_path / str(number), whole, chance, **kind))


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_fifty_kills_lose_nothing_with_any_of_five_optimizers(tmp_path: Path):
    chance, found = random.Random(7), []
    for name, rate in OPTIMIZERS:
        options = {"optimizer__type": name, "optimizer__learning_rate": rate}
        whole = whole_run(tmp_path / name, **options)
        for number in range(10):
            one = kill_once(
                tmp_path / name / str(number), whole, chance, inside_a_save=number % 3 == 0, first_state_only=number == 1, **options
            )
            check(one)
            found.append(one)
    assert len(found) == 50
    assert sum(one["killed"] for one in found) >= 45
    assert sum(one["inside"] for one in found) >= 10
