"""Loss weights of a batch by timestep; snr = a / (1 - a), a the cumulative product of alphas."""

from __future__ import annotations

from torch import Tensor

MAX_SNR = 1000.0
"""Limit of the signal-to-noise ratio: without noise it would be infinite."""


def signal_to_noise(alphas_cumprod: Tensor) -> Tensor:
    """snr = a / (1 - a), in the shape of a, `alphas_cumprod`."""
    return alphas_cumprod / (1.0 - alphas_cumprod)


def min_snr(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """min(snr, gamma) / snr, [batch]; for "v" min(snr, gamma) / (snr + 1) (Hang et al. 2023, eq. 7, https://arxiv.org/abs/2303.09556)."""
    clamped = snr.clamp(max=gamma)
    return clamped / (snr + 1.0) if prediction == "v" else clamped / snr


def debiased_estimation(snr: Tensor, prediction: str) -> Tensor:
    """1 / sqrt(snr), [batch] (Yu et al. 2023, https://arxiv.org/abs/2310.08442); for "v" 1 / (snr + 1), as in sd-scripts."""
    clamped = snr.clamp(max=MAX_SNR)
    return 1.0 / (clamped + 1.0) if prediction == "v" else 1.0 / clamped.sqrt()


def scale_v_like_noise(snr: Tensor) -> Tensor:
    """snr / (snr + 1), [batch]: turns the loss of v into that of the noise (Salimans & Ho 2022, section 4)."""
    clamped = snr.clamp(max=MAX_SNR)
    return clamped / (clamped + 1.0)


def add_v_like(snr: Tensor, share: float) -> Tensor:
    """1 + share (snr + 1) / snr, [batch]: the loss of the noise plus a share of it weighted as v's (sd-scripts' v_pred_like_loss)."""
    return 1.0 + share / scale_v_like_noise(snr)
