"""Block 3: the small model trains in each number format as on the CPU; an overflow costs one step; what two equal runs agree in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.card.block import CPU, Block, Card, Figures, relative_error, require
from benchmarks.card.runs import crescent, events_of, losses, seen_trainers, validation_losses, weights_of, with_validation
from lora_trainer.events import Event, Finished, Stepped
from lora_trainer.train.trainer import Trainer

STEPS, CPU_STEPS = 60, 8
WITHIN = 0.03
"""Validation losses of two number formats may differ by so much: noise and pictures are the same."""
OVERFLOW_AT = 3
SAME = 1e-2
"""Relative difference of two equal runs' weights on a GPU, whose kernels add up in no fixed order."""


def trains_as_the_cpu(card: Card) -> Figures:
    """Validation loss at the end of a run in each format, beside the CPU's in float32 and the loss before training."""
    steps = STEPS if card.is_cuda else CPU_STEPS
    expected = _validated(Card(CPU, card.new_folder()), steps, "no")
    rows = [{"format": "float32 on the CPU", "before": expected[0], "after": expected[-1]}]
    for name in ("no", "bf16", "fp16") if card.is_cuda else ("bf16",):
        found = _validated(card, steps, name)
        rows.append({"format": name, "before": found[0], "after": found[-1], "off": found[-1] / expected[-1] - 1})
    for row in rows[1:]:
        require(row["after"] < row["before"], f"{row['format']}: the validation loss did not fall")
        require(abs(row["off"]) <= WITHIN, f"{row['format']}: the validation loss is {row['off']:+.1%} off the CPU's")
    return {"steps": steps, "rows": rows}


def _validated(card: Card, steps: int, precision: str) -> list[float]:
    folder = card.new_folder()
    pictures = 6 if steps == STEPS else 2
    changes = with_validation(steps__max_train_steps=steps, memory__mixed_precision=precision, validate__max_pictures=pictures)
    return validation_losses(events_of(card, crescent(folder, **changes), folder))


def overflow_drops_one_step(card: Card) -> Figures:
    """One gradient that is not finite: that step is skipped, the weights stay, the scale is halved, and the run goes on."""
    formats = ("fp16", "bf16", "no") if card.is_cuda else ("no",)
    return {name: _overflow(card, name) for name in formats}


def _overflow(card: Card, precision: str) -> str:
    folder, before, seen = card.new_folder(), [], []
    config = crescent(folder, memory__mixed_precision=precision, steps__max_train_steps=OVERFLOW_AT + 3)

    def watch(event: Event) -> None:
        if isinstance(event, Stepped):
            seen.append(event)
            if event.step in (OVERFLOW_AT, OVERFLOW_AT + 1):
                before.append(_flat(trainers[0]))
            if event.step == OVERFLOW_AT:
                plant_overflows(trainers[0], 1)

    with seen_trainers() as trainers:
        events = events_of(card, config, folder, watch=watch)
    require(isinstance(events[-1], Finished), "the run did not finish")
    require([step.skipped for step in seen] == [0] * OVERFLOW_AT + [1] * 3, f"{precision}: not exactly one step was skipped")
    require(torch.equal(*before), f"{precision}: the weights changed in the step that was skipped")
    require(not math.isfinite(seen[OVERFLOW_AT].grad_norm), f"{precision}: the planted gradient was not noticed")
    scales = [step.loss_scale for step in seen[OVERFLOW_AT - 1 : OVERFLOW_AT + 1]]
    require(precision != "fp16" or scales[1] == scales[0] / 2, f"the loss scale went from {scales[0]} to {scales[1]}")
    return f"one step skipped, scale {scales[0]:g} to {scales[1]:g}"


def plant_overflows(trainer: Trainer, count: int) -> None:
    """The next `count` gradients of the network are infinite."""
    left = iter(range(count))

    def infinite(gradient: Tensor) -> Tensor:
        return gradient if next(left, None) is None else torch.full_like(gradient, math.inf)

    trainer.optimizer.groups[0].buffer.register_hook(infinite)


def _flat(trainer: Trainer) -> Tensor:
    return torch.cat([group.buffer.detach().cpu().clone() for group in trainer.optimizer.groups])


def two_runs(card: Card) -> Figures:
    """A run and the same run again: equal bits on the CPU; on a GPU how far apart, which has a bound."""
    runs = []
    for _ in range(2):
        folder = card.new_folder()
        events = events_of(card, crescent(folder), folder)
        runs.append((losses(events), weights_of(folder)))
    (first_losses, first), (second_losses, second) = runs
    equal = all(torch.equal(first[name], second[name]) for name in first)
    off = max(relative_error(second[name], first[name]) for name in first if first[name].numel() > 1)
    require(first.keys() == second.keys(), "the files hold different tensors")
    require(equal or card.is_cuda, "two runs on the CPU differ")
    require(off <= SAME, f"two equal runs are {off:.2g} apart")
    loss_off = max(abs(one - other) for one, other in zip(first_losses, second_losses, strict=True))
    return {"equal bits": equal, "weights apart": off, "losses apart": loss_off}


BLOCKS = (
    Block("precision", "the small model trains in fp16, bf16 and fp32: validation within 3 % of the CPU's", trains_as_the_cpu, 40.0, 8.0),
    Block("overflow", "a gradient that is infinite once costs one step", overflow_drops_one_step, 12.0, 4.0),
    Block("two-runs", "two equal runs compared", two_runs, 8.0, 6.0),
)
