"""Optimizers step as their papers say: to 1e-6 beside numpy in double precision, over two groups and several steps.

Prodigy's estimate comes from how far all weights have moved, of which single precision sees little at first: it is held beside in double,
and with a tiny eps, which the package multiplies with the new estimate and the paper with the old one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lora_trainer.optim.optimizers import GroupPlan, make_optimizer
from tests.optim import steps

SHAPES = [(6, 40), (40, 6), (8, 8), (6, 40)]
COURSE = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.1]
FIXED = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
CASES: list[tuple[str, Any, float, dict[str, Any], torch.dtype]] = [
    ("AdamW", steps.AdamW, 1e-2, {}, torch.float32),
    ("torch.optim.AdamW", steps.AdamW, 1e-2, {}, torch.float32),
    ("Lion", steps.Lion, 1e-3, {}, torch.float32),
    ("AdaFactor", steps.Adafactor, 1e-2, FIXED, torch.float32),
    ("Prodigy", lambda weights: steps.Prodigy(weights, first=1e-3, eps=1e-15), 1.0, {"d0": 1e-3, "eps": 1e-15}, torch.float64),
]


@pytest.mark.parametrize(("name", "reference", "rate", "options", "dtype"), CASES, ids=[case[0] for case in CASES])
def test_a_step_is_that_of_the_paper(name: str, reference: Any, rate: float, options: dict[str, Any], dtype: torch.dtype):
    drawn = np.random.default_rng(7)
    begin = [drawn.normal(0.0, 0.3, shape) for shape in SHAPES]
    targets = [drawn.normal(0.0, 0.3, shape) for shape in SHAPES]
    parameters = [nn.Parameter(torch.tensor(weights, dtype=dtype)) for weights in begin]
    plans = [GroupPlan("first", "first", rate), GroupPlan("second", "second", rate)]
    ours = make_optimizer(name, {"first": parameters[:2], "second": parameters[2:]}, plans, options)
    paper = reference(begin)
    for factor in COURSE:
        aims = [torch.tensor(target, dtype=dtype) for target in targets]
        tensors = [tensor for part in ours.tensors() for tensor in part]
        sum((0.5 * (tensor - aim) ** 2).sum() for tensor, aim in zip(tensors, aims, strict=True)).backward()
        ours.step(factor)
        paper.step([weights - target for weights, target in zip(paper.weights, targets, strict=True)], rate * factor)
        for parameter, weights in zip(parameters, paper.weights, strict=True):
            assert np.abs(parameter.detach().numpy() - weights).max() <= 1e-6
    moved = max(np.abs(weights - before).max() for weights, before in zip(paper.weights, begin, strict=True))
    assert moved > 1e-3


def test_what_prodigy_found_is_told_as_the_rate_in_effect():
    begin = [np.random.default_rng(3).normal(0.0, 0.3, (6, 40))]
    parameters = [nn.Parameter(torch.tensor(begin[0], dtype=torch.float32))]
    ours = make_optimizer("Prodigy", {"unet": parameters}, [GroupPlan("unet", "unet", 1.0)], {"d0": 1e-3})
    paper = steps.Prodigy(begin, first=1e-3)
    for _ in range(12):
        (ours.tensors()[0][0] ** 2).sum().mul(0.5).backward()
        ours.step(1.0)
        paper.step(paper.weights, 1.0)
    assert paper.size > 2e-3
    assert ours.learning_rates(0.5)["unet"] == pytest.approx(0.5 * paper.size, rel=1e-4)
