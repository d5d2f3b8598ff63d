"""The noise schedule: how much of a picture is left at each of the 1000 steps."""

from __future__ import annotations

import torch
from torch import Tensor

BETA_START, BETA_END, STEPS = 0.00085, 0.012, 1000


def alphas_cumprod(*, zero_terminal_snr: bool = False) -> Tensor:
    """Share of signal left at each of the 1000 steps ("scaled linear": linear in the root of beta), float32 [1000].

    With `zero_terminal_snr` nothing of the picture is left at the last one.
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float32) ** 2
    alphas = torch.cumprod(1.0 - betas, dim=0)
    return without_signal_at_the_end(alphas) if zero_terminal_snr else alphas


def without_signal_at_the_end(alphas: Tensor) -> Tensor:
    """Shifts and scales the root of a schedule so that it ends at zero and begins where it began (Lin et al. 2023, algorithm 1)."""
    roots = alphas.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * first / (first - last)) ** 2
