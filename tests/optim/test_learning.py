"""Every optimizer and every schedule learns: real runs on the small model bring the loss of pictures it never saw down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.optimizers import SCHEDULE_CHOICES, config_of, measured, optimizer_rows, schedule_rows
from lora_trainer.events import Stepped, Validated, Warned
from tests.optim.test_every_optimizer import HERE
from tests.train.runs import events_of

SHORT = 16
ROWS = [row for row in optimizer_rows() if row[1]["type"] in HERE or "." in row[1]["type"]]
SCHEDULES = list(schedule_rows())
Row = tuple[str, dict[str, Any], dict[str, Any]]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_optimizer_learns(row: Row):
    found = measured(*row)
    assert found.lower >= 0.05
    assert found.found > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("row", SCHEDULES, ids=[row[0] for row in SCHEDULES])
def test_every_schedule_learns(row: Row):
    assert measured(*row).lower >= 0.05


@pytest.mark.parametrize("name", ["AdaFactor, fixed rate", "AdamWScheduleFree"])
def test_a_few_steps_learn(name: str):
    row = next(row for row in optimizer_rows(SHORT) if row[0] == name)
    assert measured(*row, steps=SHORT).lower >= 0.05


def test_no_schedule_is_left_out():
    assert {row[0] for row in SCHEDULES} >= set(SCHEDULE_CHOICES) and {row[0] for row in ROWS} >= set(HERE)


def test_the_rates_that_are_told_while_training_are_those_that_were_drawn(tmp_path: Path):
    optimizer = {"type": "AdamW", "learning_rate": 1e-3, "text_encoder_lr": 5e-4, "loraplus_unet_lr_ratio": 4.0, "scale_lr": "sqrt"}
    schedule = {"type": "cosine_with_restarts", "num_cycles": 2.0, "warmup_steps": 2, "min_lr_ratio": 0.1}
    events = events_of(config_of(tmp_path, optimizer, schedule, 6), tmp_path)
    plan = events[0].plan
    assert list(plan["schedule"]) == ["unet", "unet plus", "text_encoder"]
    assert plan["rate_scale"] == 2.0 and plan["effective"]["unet plus"]["rate"] == pytest.approx(8e-3)
    stepped = [event for event in events if isinstance(event, Stepped)]
    for name, drawn in plan["schedule"].items():
        assert [rate for _, rate in drawn] == pytest.approx([event.rates[name] for event in stepped], rel=1e-5)
    assert [event.lr for event in stepped] == [event.rates["unet"] for event in stepped]
    assert len([event for event in events if isinstance(event, Validated)]) == 2


def test_a_rate_of_another_family_is_told_before_the_first_step(tmp_path: Path):
    config = config_of(tmp_path, {"type": "Prodigy", "learning_rate": 1e-4}, {"type": "constant"}, 1)
    events = events_of(config, tmp_path)
    told = [event for event in events if isinstance(event, Warned) and event.path == "optimizer.learning_rate"]
    assert len(told) == 1 and "write 1" in told[0].message.text("en")
    assert events.index(told[0]) < next(number for number, event in enumerate(events) if isinstance(event, Stepped))
