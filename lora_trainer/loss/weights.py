"""How much each picture of a batch counts."""

from __future__ import annotations

from torch import Tensor


def signal_to_noise(alphas: Tensor) -> Tensor:
    """a / (1 - a), shape of `alphas`."""
    return alphas / (1.0 - alphas)


def min_snr(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Loss weights of shape [batch] that clamp nearly clean steps (Hang et al. 2023, eq. 7; for v divided by snr + 1)."""
    clamped = snr.clamp(max=gamma)
    return clamped / (snr + 1.0) if prediction == "v" else clamped / snr
