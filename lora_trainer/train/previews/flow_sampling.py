"""Samplers of rectified flow: the straight path from noise to picture, dx = v dt, in shifted steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lora_trainer.config.choices.samplers import CHOICES, FLOW_SAMPLERS
from lora_trainer.errors import TrainerError
from lora_trainer.models.noise_schedule import RECTIFIED_FLOW, shift_noise_share

Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents, timestep) -> the guided model's velocity, noise - picture."""
SECOND_ORDER = ("heun",)


def noise_shares(steps: int, shift: float) -> list[float]:
    """t of the noise at each step, from 1 down to 0, `steps` + 1 values: evenly spaced, then shifted (Esser et al. 2024)."""
    return [shift_noise_share(1.0 - number / steps, shift) for number in range(steps + 1)]


def run_flow_sampler(name: str, noise: Tensor, steps: int, shift: float, predict: Predict, stopping: Callable[[], bool]) -> Tensor | None:
    """Latents [n, c, h, w] that a sampler makes of standard normal `noise`; None when `stopping` returns True between two steps.

    "euler" and "ddim" take the same steps x + (t' - t) v(x, t). "heun" averages the velocities at both ends of a step, but for the last.
    Raises TrainerError for a sampler that is made for other models.
    """
    require_flow_sampler(name)
    latents, shares = noise, noise_shares(steps, shift)
    for t, after in itertools.pairwise(shares):
        if stopping():
            return None
        velocity = predict(latents, _timestep(t))
        if name in SECOND_ORDER and after > 0.0:
            velocity = (velocity + predict(latents + (after - t) * velocity, _timestep(after))) / 2
        latents = latents + (after - t) * velocity
    return latents


def require_flow_sampler(name: str) -> None:
    """Raises TrainerError for a sampler that does not draw with models of rectified flow."""
    if name not in FLOW_SAMPLERS:
        raise TrainerError(
            "the sampler {name} does not draw with models of rectified flow.",
            name=CHOICES.get(name, name),
            path="sample.sampler",
            known=", ".join(CHOICES[known] for known in FLOW_SAMPLERS),
            fix="Choose one of these: {known}.",
        )


def _timestep(t: float) -> Tensor:
    return torch.tensor(t * RECTIFIED_FLOW.steps, dtype=torch.float32)
