"""bfloat16 weights that are rounded up or down by chance: on average nothing of a step is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_trainer.optim.rounding import HalfWeights, stochastic_round


def test_numbers_between_two_of_bfloat16_become_either_of_them_with_the_right_mean():
    one, above = 1.0, 1.0 + 2**-7
    value = one + 0.3 * (above - one)
    found = stochastic_round(torch.full((200_000,), value), torch.Generator().manual_seed(3)).float()
    assert set(found.unique().tolist()) == {one, above}
    assert float((found == above).float().mean()) == pytest.approx(0.3, abs=0.005)


def test_what_bfloat16_holds_stays_and_what_is_no_number_too():
    exact = torch.tensor([0.0, -0.0, 1.5, -3.0, 2.0**-130, 1e30]).to(torch.bfloat16).float()
    assert torch.equal(stochastic_round(exact).float(), exact)
    odd = stochastic_round(torch.tensor([float("inf"), float("-inf"), float("nan")]))
    assert odd[0] == float("inf") and odd[1] == float("-inf") and bool(odd[2].isnan())
    assert bool(torch.isfinite(stochastic_round(torch.tensor([3.38e38]))).all())


def test_negative_numbers_are_not_drawn_towards_zero():
    found = stochastic_round(torch.full((100_000,), -1.0 - 2**-9), torch.Generator().manual_seed(1)).float()
    assert float(found.mean()) == pytest.approx(-1.0 - 2**-9, abs=2e-4)


def descend(stochastic: bool) -> float:
    """A hundred steps of 1e-4 each on a weight of 1."""
    weight = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
    half = HalfWeights([weight], seed=5)
    for step in range(100):
        weight.grad = torch.full_like(weight, 1.0)
        opened = half.open()
        with torch.no_grad():
            opened[0] -= 1e-4 * opened[0].grad
        if stochastic:
            half.close(opened, step)
        else:
            weight.data.copy_(opened[0])
    return float(weight.float().mean())


def test_many_small_steps_move_a_weight_that_plain_rounding_leaves_where_it_is():
    assert descend(False) == 1.0
    assert descend(True) == pytest.approx(0.99, abs=5e-4)


def test_a_step_that_is_done_again_rounds_to_the_same_bits():
    values = [torch.rand(100)]
    ends = []
    for _ in range(2):
        weight = nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
        HalfWeights([weight], seed=2).close(values, 7)
        ends.append(weight.detach().clone())
    assert torch.equal(*ends)
    with pytest.raises(TypeError, match="bfloat16"):
        HalfWeights([nn.Parameter(torch.zeros(2))])
