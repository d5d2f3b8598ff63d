"""DPM-Solver-2 in its multistep form, which diffusers calls deprecated in its own DPMSolverMultistepScheduler."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

FEW_STEPS = 15
"""With fewer the last step is one of first order, which is steadier (as in diffusers)."""


class DPMSolver:
    """DPM-Solver-2, multistep (Lu et al. 2022, "DPM-Solver", for the noise that the model predicts).

    With x = a_t x_0 + s_t e, l_t = log(a_t / s_t), h = l_t - l_s and r = (l_s - l_r) / h, where r, s and t follow each other:
    x_t = (a_t / a_s) x_s - s_t (exp(h) - 1) (e_s + (e_s - e_r) / 2 r). Timesteps and noise levels are those of `levels`, a
    DPMSolverMultistepScheduler whose last level is not zero.
    """

    def __init__(self, levels: Any, prediction_type: str) -> None:
        self.levels, self.prediction_type = levels, prediction_type
        self.noise: Tensor | None = None
        self.index = 0

    def set_timesteps(self, steps: int) -> None:
        """Starts a picture of `steps` steps."""
        self.levels.set_timesteps(steps)
        self.noise, self.index = None, 0

    @property
    def timesteps(self) -> Tensor:
        """Timesteps at which the model is evaluated, [steps]."""
        timesteps: Tensor = self.levels.timesteps
        return timesteps

    @property
    def init_noise_sigma(self) -> Any:
        """Standard deviation of the initial noise."""
        return self.levels.init_noise_sigma

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The latents, whose variance is 1 as the model takes them."""
        return sample

    def step(self, output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The latents at the next noise level."""
        signal, sigma = self._level(self.index)
        next_signal, next_sigma = self._level(self.index + 1)
        noise = signal * output + sigma * sample if self.prediction_type == "v_prediction" else output
        width = math.log(next_signal / next_sigma) - math.log(signal / sigma)
        slope: Tensor | float = 0.0
        last = self.index + 1 == len(self.timesteps)
        if self.noise is not None and not (last and len(self.timesteps) < FEW_STEPS):
            earlier_signal, earlier_sigma = self._level(self.index - 1)
            ratio = (math.log(signal / sigma) - math.log(earlier_signal / earlier_sigma)) / width
            slope = (noise - self.noise) / (2 * ratio)
        self.noise, self.index = noise, self.index + 1
        return (sample * (next_signal / signal) - (noise + slope) * (next_sigma * math.expm1(width)),)

    def _level(self, index: int) -> tuple[float, float]:
        """(a, s) with a^2 + s^2 = 1."""
        ratio = float(self.levels.sigmas[index])
        signal = 1 / math.sqrt(ratio**2 + 1)
        return signal, ratio * signal
