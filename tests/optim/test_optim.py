"""Schedules against their formulas, the flat optimizer against torch's on separate tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lora_trainer.errors import TrainerError
from lora_trainer.optim.builders import OPTIMIZERS
from lora_trainer.optim.optimizers import GroupPlan, TrainingOptimizer, make_optimizer
from lora_trainer.optim.schedules import Schedule, ScheduleOptions


def made(name: str, groups: list[tuple[list[nn.Parameter], float]], **options: Any) -> TrainingOptimizer:
    """An optimizer with one part for each of the (parameters, rate) pairs."""
    parts = {f"part {number}": parameters for number, (parameters, _) in enumerate(groups)}
    return make_optimizer(name, parts, [GroupPlan(part, part, rate) for part, (_, rate) in zip(parts, groups, strict=True)], options)


def test_the_rate_rises_over_the_warm_up_and_ends_at_its_floor():
    assert [Schedule("constant", 100, 10, ScheduleOptions(0.0)).factor(step) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert Schedule("cosine", 100, 10, ScheduleOptions(0.0)).factor(55) == pytest.approx(0.5)
    assert Schedule("cosine", 100, 10, ScheduleOptions(0.1)).factor(100) == pytest.approx(0.1)
    assert Schedule("linear", 100, 10, ScheduleOptions(0.0)).factor(55) == pytest.approx(0.5)
    assert Schedule("linear", 100, 0, ScheduleOptions(0.2)).factor(100) == pytest.approx(0.2)


def test_one_flat_buffer_steps_as_separate_tensors_do():
    torch.manual_seed(0)
    shapes = [(3, 5), (7,), (3, 5), (2, 2, 1, 1), (7,)]
    flat = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    apart = [nn.Parameter(parameter.detach().clone()) for parameter in flat]
    ours = made("AdamW", [(flat[:3], 1e-2), (flat[3:], 5e-3)], weight_decay=0.1)
    theirs = torch.optim.AdamW([{"params": apart[:3], "lr": 1e-2}, {"params": apart[3:], "lr": 5e-3}], weight_decay=0.1)
    for _ in range(5):
        for _ in range(2):  # two batches make a step
            for tensors in ([tensor for group in ours.tensors() for tensor in group], apart):
                sum((tensor**2).sum() * (number + 1) for number, tensor in enumerate(tensors)).backward()
        ours.step(1.0)
        theirs.step()
        theirs.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(flat, apart, strict=True))
    assert ours.gradients() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_batch_calculates_with_are_the_parameters_in_its_number_format(dtype):
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((2, 3), (4, 2), (2, 3))]
    values = [parameter.detach().clone() for parameter in parameters]
    (tensors,) = made("AdamW", [(parameters, 1e-2)]).tensors(dtype)
    assert all(torch.equal(tensor, value.to(dtype)) for tensor, value in zip(tensors, values, strict=True))
    assert all(torch.equal(parameter, value) for parameter, value in zip(parameters, values, strict=True))


def test_gradients_arrive_whole_and_in_float32_also_where_a_parameter_was_not_used():
    parameters = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))]
    optimizer = made("AdamW", [(parameters, 1e-2)])
    ((used, _),) = optimizer.tensors(torch.bfloat16)
    (used * 3).sum().backward()
    (gradient,) = optimizer.gradients()
    assert gradient.dtype == torch.float32
    assert sorted(gradient.tolist()) == [0.0] * 4 + [3.0] * 6


def test_a_choice_that_does_not_exist_names_the_nearest():
    with pytest.raises(TrainerError, match="AdamW"):
        OPTIMIZERS["adamm"]
    assert math.isclose(Schedule("Cosine", 10, 0, ScheduleOptions(0.0)).factor(0), 1.0)
