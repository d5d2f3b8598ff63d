"""Blocks that are computed again: the same gradient in every bit, and as much memory as was asked for."""

from __future__ import annotations

import attrs
import pytest
import torch

from benchmarks import memory
from benchmarks.memory import Setting
from benchmarks.random_checkpoint import SD15, TINY
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import DtypeSizes

WIDTHS = attrs.evolve(TINY, unet=(32, 64, 96, 96))


def gradient(share: float, way: str = "") -> tuple[torch.Tensor, int]:
    """Of one step on a 64 x 64 picture, and the bytes that its forward kept."""
    torch.manual_seed(0)
    step = memory.Step(WIDTHS, Setting(128, 2, share, 4), torch.float32, DtypeSizes())
    if way:
        step.checkpointing.remove()
        step.checkpointing = memory.Checkpointing(
            step.bundle.unet,
            step.bundle.text_encoder,
            {block.name: way if any(each.name == way for each in block.options) else "keep" for block, _ in step.choice.blocks},
        )
    found: list[torch.Tensor] = []
    step.optimizer.step = lambda factor: found.extend(each.clone() for each in step.optimizer.gradients())  # type: ignore[method-assign]
    for group in step.optimizer.groups:
        torch.nn.init.normal_(group.buffer, std=0.1)
    step()
    step.optimizer.zero_grad()
    return found[0], memory.kept_bytes(step)


@pytest.mark.parametrize(("share", "way"), [(0.0, ""), (0.5, ""), (0.5, "light"), (0.5, "forward"), (0.5, "whole")])
def test_the_gradient_is_the_same_in_every_bit(share, way):
    kept, bytes_kept = gradient(1.0)
    again, bytes_again = gradient(share, way)
    assert torch.equal(kept, again) and bool(kept.any())
    assert bytes_again < 0.9 * bytes_kept


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_what_is_kept_stays_within_the_budget(share):
    _, everything = gradient(1.0)
    _, kept = gradient(share)
    assert kept <= share * everything * 1.05


def test_a_budget_takes_what_saves_most_for_least():
    numbers = DtypeSizes(2, 2)
    blocks = list(activations.unet_blocks(activations.SD1, 32 * 32, 1, 16, numbers))
    rest = activations.bytes_between_blocks(activations.SD1, 32 * 32, 16, numbers)
    everything, nothing = activations.keep_all(blocks, rest), activations.recompute_all(blocks, rest)
    shares = (0.9, 0.7, 0.5, 0.3)
    chosen = [activations.recompute_within(blocks, rest, everything.kept_bytes * share) for share in shares]
    assert all(choice.peak_bytes <= everything.kept_bytes * share for choice, share in zip(chosen, shares, strict=True))
    assert sorted(choice.flop for choice in chosen) == [choice.flop for choice in chosen]
    half = chosen[2]
    assert half.flop < 0.1 * 375e9  # a tenth of the step's own at this size
    assert half.flop < 0.5 * nothing.flop
    assert activations.recompute_within(blocks, rest, everything.kept_bytes).flop == 0


@pytest.mark.parametrize("share", [0.5, pytest.param(1.0, marks=pytest.mark.slow), pytest.param(0.0, marks=pytest.mark.slow)])
def test_the_predicted_peak_is_the_counted_one_within_15_percent(share):
    """Stable Diffusion 1.5's shapes, nothing calculated; the twelve settings are measured by benchmarks/memory.py."""
    row = next(memory.rows(SD15, [Setting(448, 2, share, 24)], torch.bfloat16, cuda=False))
    assert abs(row["off"]) <= 0.15 and abs(row["step_off"]) <= 0.15


def test_counting_without_calculating_equals_counting_a_real_step():
    setting = Setting(64, 2, 0.5, 4)
    counted, _ = memory.count(WIDTHS, setting, torch.float32, cuda=False)
    step = memory.Step(WIDTHS, setting, torch.float32, DtypeSizes())
    step()
    with memory.Allocations() as real:
        real.already(memory.lasting(step))
        step()
    assert counted.within == pytest.approx(real.peak, rel=0.02)
