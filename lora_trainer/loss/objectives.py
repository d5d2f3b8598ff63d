"""The target of a prediction, and the elementwise loss between the two."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

TRAIN_TIMESTEPS = 1000


def target(prediction: str, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise e ("epsilon"), or sqrt(a) e - sqrt(1 - a) x ("v"; Salimans & Ho 2022, eq. 10, https://arxiv.org/abs/2202.00512).

    Args: latents x and noise e [batch, c, h, w]; alphas_cumprod a [batch].
    """
    if prediction == "epsilon":
        return noise
    a = alphas_cumprod.view(-1, 1, 1, 1).to(latents.dtype)
    return a.sqrt() * noise - (1.0 - a).sqrt() * latents


def elementwise_loss(kind: str, prediction: Tensor, target: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Loss of each element, in the shape of both tensors; with d = prediction - target and the threshold c:

    "l2": d^2; "l1": |d|; "huber": 2 c (sqrt(d^2 + c^2) - c), the pseudo-Huber loss (Charbonnier et al. 1997), near d^2 for small d;
    "smooth_l1": 2 (sqrt(d^2 + c^2) - c), near 2 |d| for large d.

    Args: threshold c [batch], needed for "huber" and "smooth_l1". Raises ValueError where it is missing.
    """
    if kind == "l2":
        return functional.mse_loss(prediction, target, reduction="none")
    if kind == "l1":
        return functional.l1_loss(prediction, target, reduction="none")
    if threshold is None:
        raise ValueError(kind)
    c = threshold.view(-1, 1, 1, 1)
    distance = 2.0 * (torch.sqrt((prediction - target) ** 2 + c**2) - c)
    return distance * c if kind == "huber" else distance


def huber_threshold(schedule: str, timesteps: Tensor, alphas_cumprod: Tensor, c: float, scale: float) -> Tensor:
    """The threshold c of each timestep, [batch] (Khrapov et al. 2024).

    "constant": c s; "exponential": c^(t / 1000) s, from s at t = 0 to c s at the end; "snr": (1 - c) / (1 + sigma)^2 + c with
    sigma = sqrt((1 - a) / a), which does not use s (as in sd-scripts).

    Args: timesteps t and alphas_cumprod a, [batch]; `scale` s.
    """
    if schedule == "constant":
        return torch.full(alphas_cumprod.shape, c * scale, device=alphas_cumprod.device)
    if schedule == "exponential":
        return torch.exp(math.log(c) / TRAIN_TIMESTEPS * timesteps.to(alphas_cumprod.dtype)) * scale
    sigmas = ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()
    return (1.0 - c) / (1.0 + sigmas) ** 2 + c
