"""Schedules beside transformers' and torch's own, and what the plan draws of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lora_trainer.config import effective
from lora_trainer.config.build import build
from lora_trainer.config.choices.optimizers import SCHEDULE_CHOICES
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.optim.schedules import Schedule, ScheduleOptions, lr_curve, make_schedule

TOTAL, WARMUP = 60, 7


def of(total: int = TOTAL, **options: Any) -> Schedule:
    """The schedule of a config's [schedule] in a run of `total` steps."""
    config = build({"schedule": options})
    return make_schedule(config.schedule, total, effective.warmup_steps(config, total), effective.decay_steps(config, total))


def theirs(scheduler: Any, steps: int) -> list[float]:
    """The shares that a torch schedule over a rate of 1 gives."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(
    ("name", "options", "extra"),
    [
        ("constant_with_warmup", {}, {}),
        ("linear", {}, {}),
        ("cosine", {}, {}),
        ("cosine_with_restarts", {"num_cycles": 3.0}, {"num_cycles": 3}),
        ("polynomial", {"power": 2.0}, {"power": 2.0, "lr_end": 0.0}),
    ],
)
def test_schedules_are_those_of_transformers(name: str, options: dict[str, Any], extra: dict[str, Any]):
    from transformers import optimization

    made = {
        "constant_with_warmup": optimization.get_constant_schedule_with_warmup,
        "linear": optimization.get_linear_schedule_with_warmup,
        "cosine": optimization.get_cosine_schedule_with_warmup,
        "cosine_with_restarts": optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
        "polynomial": optimization.get_polynomial_decay_schedule_with_warmup,
    }[name]
    length = {} if name == "constant_with_warmup" else {"num_training_steps": TOTAL}
    wanted = theirs(made(sgd(), num_warmup_steps=WARMUP, **length, **extra), TOTAL)
    ours = of(type=name, warmup_steps=WARMUP, **options)
    assert [ours.factor(step) for step in range(TOTAL)] == pytest.approx(wanted, abs=1e-9)


def test_the_inverse_square_root_is_that_of_transformers():
    from transformers.optimization import get_inverse_sqrt_schedule

    for timescale in (0, 40):
        wanted = theirs(get_inverse_sqrt_schedule(sgd(), num_warmup_steps=WARMUP, timescale=timescale or None), TOTAL)
        ours = of(type="inverse_sqrt", warmup_steps=WARMUP, timescale=timescale)
        assert [ours.factor(step) for step in range(TOTAL)] == pytest.approx(wanted, abs=1e-9)
    assert of(type="inverse_sqrt").factor(10_000) == pytest.approx(1 / math.sqrt(2))


def test_cosine_with_a_floor_and_the_stable_schedule_are_those_of_transformers():
    from transformers import optimization

    if not hasattr(optimization, "get_wsd_schedule"):  # transformers 4.30, which the older host has, knows neither
        assert of(type="cosine_with_min_lr", min_lr_ratio=0.1).factor(TOTAL) == pytest.approx(0.1)
        return
    floor = optimization.get_cosine_with_min_lr_schedule_with_warmup(sgd(), WARMUP, TOTAL, min_lr_rate=0.1)
    ours = of(type="cosine_with_min_lr", warmup_steps=WARMUP, min_lr_ratio=0.1)
    assert [ours.factor(step) for step in range(TOTAL)] == pytest.approx(theirs(floor, TOTAL), abs=1e-9)
    stable = optimization.get_wsd_schedule(sgd(), WARMUP, TOTAL - WARMUP - 12, 12, min_lr_ratio=0.05)
    ours = of(type="warmup_stable_decay", warmup_steps=WARMUP, decay_steps="20%", min_lr_ratio=0.05)
    assert [ours.factor(step) for step in range(TOTAL)] == pytest.approx(theirs(stable, TOTAL), abs=1e-9)


def test_down_and_up_is_torchs_annealing_over_the_cycles():
    wanted = theirs(torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), T_max=20, eta_min=0.1), TOTAL)
    ours = of(type="cosine_annealing", num_cycles=3.0, min_lr_ratio=0.1)
    assert [ours.factor(step) for step in range(TOTAL)] == pytest.approx(wanted, abs=1e-9)


def test_pieces_are_those_of_diffusers():
    from diffusers.optimization import get_piecewise_constant_schedule

    wanted = theirs(get_piecewise_constant_schedule(sgd(), "1:10,0.1:30,0.05"), TOTAL)
    ours = of(type="piecewise_constant", args="step_rules=1:10,0.1:30,0.05")
    assert [ours.factor(step) for step in range(TOTAL)] == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(TrainerError, match="cannot be parsed"):
        of(type="piecewise_constant", args="step_rules=1:ten")


def test_rex_falls_as_its_paper_says():
    ours = of(total=101, type="rex")
    for step in range(101):
        left = 1 - step / 101
        assert ours.factor(step) == pytest.approx(left / (0.5 + 0.5 * left))


@pytest.mark.parametrize(
    "name", [name for name in SCHEDULE_CHOICES if name not in ("constant", "adafactor", "piecewise_constant", "inverse_sqrt")]
)
def test_every_schedule_that_falls_ends_at_its_floor_and_never_below(name: str):
    ours = of(type=name, warmup_steps="10%", min_lr_ratio=0.2, num_cycles=3.0)
    shares = [ours.factor(step) for step in range(6, TOTAL + 1)]
    assert min(shares) >= 0.2 - 1e-12 and shares[0] == pytest.approx(1.0) and shares[-1] == pytest.approx(0.2)
    assert [ours.factor(step) for step in range(6)] == pytest.approx([step / 6 for step in range(6)])


def test_a_schedule_can_be_a_class_of_torch():
    ours = of(type="torch.optim.lr_scheduler.StepLR", args="step_size=10 gamma=0.5", warmup_steps=5)
    assert [ours.factor(step) for step in (0, 4, 5, 14, 15, 25, 59)] == pytest.approx([0.0, 0.8, 1.0, 1.0, 0.5, 0.25, 0.5**5])
    ours = of(type="torch.optim.lr_scheduler.OneCycleLR", args=f"max_lr=2.0 total_steps={TOTAL + 1}")
    assert max(ours.factor(step) for step in range(TOTAL)) == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"type": "torch.optim.lr_scheduler.Nothing"}, "not a schedule of an installed package"),
        ({"type": "os.system", "args": "command=1"}, "not a schedule of an installed package"),
        ({"type": "torch.optim.AdamW"}, "not a schedule of an installed package"),
        ({"type": "torch.optim.lr_scheduler.StepLR"}, "does not take these arguments"),
        ({"type": "torch.optim.lr_scheduler.OneCycleLR", "args": "max_lr=1.0 total_steps=3"}, "does not take these arguments"),
    ],
)
def test_a_class_that_is_no_schedule_is_never_called(options: dict[str, Any], told: str):
    with pytest.raises(TrainerError, match=told):
        of(**options)


def test_what_is_drawn_is_what_is_trained():
    ours = of(total=1000, type="cosine", warmup_steps=100, min_lr_ratio=0.1)
    drawn = lr_curve(ours, 2e-4)
    assert drawn[0] == (1, 0.0) and drawn[-1][0] == 1000 and len(drawn) <= 201
    assert (101, 2e-4) in drawn
    assert all(rate == pytest.approx(2e-4 * ours.factor(step - 1), rel=1e-5) for step, rate in drawn)
    assert lr_curve(Schedule("cosine", 0), 1.0) == [] and lr_curve(Schedule("cosine", 1), 1.0) == [(1, 1.0)]


def test_every_spelling_in_use_is_a_schedule():
    names = "linear linear_with_warmup cosine cosine_annealing cosine_annealing_with_restarts cosine_with_restarts polynomial constant"
    for name in (
        *names.split(),
        "constant_with_warmup",
        "adafactor",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "warmup_stable_decay",
        "COSINE",
    ):
        assert build({"schedule": {"type": name}}).schedule.type in SCHEDULE_CHOICES
        assert 0.0 <= Schedule(name, 60, 0, ScheduleOptions(0.0)).factor(30) <= 1.0
    with pytest.raises(ConfigError, match="cosine"):
        build({"schedule": {"type": "cosin"}})


def test_a_schedule_that_is_over_stays_where_it_ended():
    assert Schedule("linear", 10, 0, ScheduleOptions(floor=0.3)).factor(500) == pytest.approx(0.3)
