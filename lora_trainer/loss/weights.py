"""How much each picture of a batch counts, by the amount of its noise."""

from __future__ import annotations

from torch import Tensor

MOST = 1000.0
"""The signal to noise of a step without noise would be infinite."""


def signal_to_noise(alphas: Tensor) -> Tensor:
    """a / (1 - a), shape of `alphas`."""
    return alphas / (1.0 - alphas)


def min_snr(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Loss weights of shape [batch] that clamp nearly clean steps (Hang et al. 2023, eq. 7; for v divided by snr + 1)."""
    clamped = snr.clamp(max=gamma)
    return clamped / (snr + 1.0) if prediction == "v" else clamped / snr


def debiased(snr: Tensor, prediction: str) -> Tensor:
    """Loss weights of shape [batch]: 1 / sqrt(snr) (Yu et al. 2023); for v 1 / (snr + 1), as in sd-scripts."""
    known = snr.clamp(max=MOST)
    return 1.0 / (known + 1.0) if prediction == "v" else 1.0 / known.sqrt()


def like_noise(snr: Tensor) -> Tensor:
    """snr / (snr + 1), [batch]: what turns the loss of v into that of the noise (Salimans & Ho 2022, section 4)."""
    known = snr.clamp(max=MOST)
    return known / (known + 1.0)


def with_v_like(snr: Tensor, share: float) -> Tensor:
    """1 + share (snr + 1) / snr, [batch]: the loss of the noise and a share of it as the loss of v (sd-scripts' v_pred_like_loss)."""
    return 1.0 + share / like_noise(snr)
