"""Which amounts of noise are seen more often: from a number drawn to a share of the steps, 0 hardly any noise, 1 noise alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Shares around one amount: the logistic function of mean + std n, n standard normal (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(mean + std * normal)


def mode(uniform: Tensor, scale: float) -> Tensor:
    """Shares with more weight in the middle (scale > 0) or at both ends (< 0), from u in [0, 1) (Esser et al. 2024, eq. 20)."""
    return 1.0 - uniform - scale * (torch.cos(uniform * (math.pi / 2)) ** 2 - 1.0 + uniform)


def step_at(share: float, low: int, high: int) -> int:
    """The step low..high-1 at a share of the range."""
    return min(max(low + int(share * (high - low)), low), high - 1)
