"""What the plan says of larger batches, and of several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.planning.memory_plan import Machine
from lora_trainer.train.planning.plan import make_plan
from tests.train.runs import small_config

CARD = Machine("cuda", 8000.0, tflops=10.0)


def planned(folder: Path, batch: int, processes: int = 1, **changes):
    config = small_config(folder, data__batch_size=batch, steps__max_train_steps=0, steps__max_train_epochs=3, **changes)
    pictures = load_dataset(config)
    return make_plan(config, pictures.records, None, CARD, pictures.datasets, processes)


def test_more_pictures_a_step_are_planned_faster_for_all_and_larger_for_one(tmp_path: Path):
    plans = [planned(tmp_path, batch) for batch in (1, 2, 4, 8)]
    seconds, activations = [plan.seconds for plan in plans], [plan.step_memory["activations"] for plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    assert activations == sorted(activations)
    assert len(set(seconds)) == len(set(activations)) == 4


@pytest.mark.parametrize("accumulation", [1, 3])
def test_several_processes_are_planned_the_steps_of_one_with_all_their_pictures(tmp_path: Path, accumulation: int):
    changes = {"steps__gradient_accumulation_steps": accumulation, "optimizer__scale_lr": "sqrt"}
    together, alone = planned(tmp_path, 3, 4, **changes), planned(tmp_path, 12, **changes)
    assert (together.steps_per_epoch, together.total_steps, together.rates) == (alone.steps_per_epoch, alone.total_steps, alone.rates)
    assert together.step_memory["activations"] < alone.step_memory["activations"]
