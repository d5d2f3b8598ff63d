"""Learning-rate schedules as plain functions of the step (no torch: the tab draws them before the start)."""

from __future__ import annotations

import math

from lora_trainer.registry import Registry

SCHEDULES: Registry = Registry("schedule")


@SCHEDULES.add("constant", "Constant")
def constant(progress: float, floor: float) -> float:
    """1 all the time."""
    return 1.0


@SCHEDULES.add("cosine", "Cosine")
def cosine(progress: float, floor: float) -> float:
    """Half a cosine from 1 to `floor` (Loshchilov & Hutter 2017, eq. 5)."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@SCHEDULES.add("linear", "Linear")
def linear(progress: float, floor: float) -> float:
    """A straight line from 1 to `floor`."""
    return floor + (1.0 - floor) * (1.0 - progress)


def factor(name: str, step: int, total: int, warmup: int, floor: float) -> float:
    """Share of the learning rate at `step` (0 is the first): rises over `warmup` steps, then follows the schedule to `total`."""
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return float(SCHEDULES[name].make(progress, floor))
