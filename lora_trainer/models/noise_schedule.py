"""Noise schedules: how much signal is left in the noisy latents at each timestep."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """What a family was trained with; `steps` is the number of timesteps."""

    @property
    def steps(self) -> int: ...

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Tensor:
        """Share of signal left at each timestep, float32 [steps]; 0 at the last one with `zero_terminal_snr`."""
        ...


@attrs.frozen
class ScaledLinear:
    """Stable Diffusion's schedule: sqrt(beta) is linear in the timestep (Rombach et al. 2022; diffusers' "scaled_linear")."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Tensor:
        """Cumulative product of 1 - beta, float32 [steps]; rescaled to end at 0 with `zero_terminal_snr`."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float32) ** 2
        alphas = torch.cumprod(1.0 - betas, dim=0)
        return rescale_zero_terminal_snr(alphas) if zero_terminal_snr else alphas

    def scheduler_config(self) -> dict[str, Any]:
        """The schedule as arguments of diffusers' schedulers."""
        return {
            "num_train_timesteps": self.steps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": "scaled_linear",
        }


SCALED_LINEAR = ScaledLinear()


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shifts and scales sqrt(alphas_cumprod) so that it ends at 0 and keeps its first value (Lin et al. 2023, algorithm 1)."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * first / (first - last)) ** 2
