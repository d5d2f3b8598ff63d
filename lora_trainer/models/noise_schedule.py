"""Noise schedules: how much signal is left in the noisy latents at each timestep."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from lora_trainer.models.prediction_kinds import FLOW


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


@attrs.frozen
class RectifiedFlow:
    """The straight path from picture to noise, x_t = (1 - t) x + t e (Liu et al. 2022, https://arxiv.org/abs/2209.03003).

    t is between 0 and 1; the U-Net is given `steps` times t, which need not be a whole number.
    """

    steps: int = 1000

    def noise_share(self, timesteps: Tensor) -> Tensor:
        """t of timesteps, float32 in their shape."""
        return timesteps.float() / self.steps

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Tensor:
        """(1 - t)^2 / ((1 - t)^2 + t^2), float32 [steps]: share of signal in noisy latents that are scaled to variance 1.

        The path itself ends in pure noise, so `zero_terminal_snr` changes nothing.
        """
        t = torch.arange(self.steps, dtype=torch.float32) / self.steps
        return (1.0 - t) ** 2 / ((1.0 - t) ** 2 + t**2)


RECTIFIED_FLOW = RectifiedFlow()


def schedule_for(prediction: str, family_schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule of a model with this prediction type: its family's, or that of rectified flow."""
    return RECTIFIED_FLOW if prediction == FLOW else family_schedule


def shift_noise_share(t: Any, shift: float) -> Any:
    """s t / (1 + (s - 1) t), a number or tensor in 0..1: more noise for s > 1, less for s < 1 (Esser et al. 2024, eq. 23)."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shifts and scales sqrt(alphas_cumprod) so that it ends at 0 and keeps its first value (Lin et al. 2023, algorithm 1)."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * first / (first - last)) ** 2
