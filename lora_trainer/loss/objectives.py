"""What the model should say, by its prediction type, and how far off an answer is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 1000


def target(prediction: str, latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """The noise itself ("epsilon"), or sqrt(a) e - sqrt(1 - a) x ("v"; Salimans & Ho 2022, eq. 10)."""
    if prediction == "epsilon":
        return noise
    kept = alphas.view(-1, 1, 1, 1).to(latents.dtype)
    return kept.sqrt() * noise - (1.0 - kept).sqrt() * latents


def errors(kind: str, predicted: Tensor, wanted: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Error of each number, shape of both; `threshold` [batch] is needed for "huber" and "smooth_l1".

    l2: d^2; l1: |d|; huber: 2 c (sqrt(d^2 + c^2) - c), the pseudo-Huber loss (Charbonnier et al. 1997), which is d^2 for small d;
    smooth_l1: the same divided by c, which is 2 |d| for large d.
    """
    if kind == "l2":
        return functional.mse_loss(predicted, wanted, reduction="none")
    if kind == "l1":
        return functional.l1_loss(predicted, wanted, reduction="none")
    if threshold is None:
        raise ValueError(kind)
    c = threshold.view(-1, 1, 1, 1)
    distance = 2.0 * (torch.sqrt((predicted - wanted) ** 2 + c**2) - c)
    return distance * c if kind == "huber" else distance


def huber_threshold(schedule: str, timesteps: Tensor, alphas: Tensor, c: float, scale: float) -> Tensor:
    """c of each step, [batch] (Khrapov et al. 2024): "constant" c s; "exponential" c^(t / 1000) s, from s at t = 0 to c s at the end;
    "snr" (1 - c) / (1 + sigma)^2 + c with sigma = sqrt((1 - a) / a), where `scale` s does not count (as in sd-scripts).
    """
    if schedule == "constant":
        return torch.full(alphas.shape, c * scale, device=alphas.device)
    if schedule == "exponential":
        return torch.exp(math.log(c) / STEPS * timesteps.to(alphas.dtype)) * scale
    sigmas = ((1.0 - alphas) / alphas).sqrt()
    return (1.0 - c) / (1.0 + sigmas) ** 2 + c
