"""The formulas of the loss once more, in numpy and double precision, written from the papers; nothing of the trainer is imported."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def alphas() -> Array:
    """Share of signal left at each of the 1000 steps of Stable Diffusion: betas linear in their root."""
    return np.cumprod(1.0 - np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2)


def wide(values: Array) -> Array:
    """[n] as [n, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


def noisy(latents: Array, noise: Array, kept: Array) -> Array:
    return np.sqrt(wide(kept)) * latents + np.sqrt(wide(1.0 - kept)) * noise


def wanted(prediction: str, latents: Array, noise: Array, kept: Array) -> Array:
    if prediction == "v":
        return np.sqrt(wide(kept)) * noise - np.sqrt(wide(1.0 - kept)) * latents
    return noise


def threshold(schedule: str, timesteps: Array, kept: Array, c: float, scale: float) -> Array:
    if schedule == "snr":
        return (1.0 - c) * (1.0 + np.sqrt(1.0 / kept - 1.0)) ** -2 + c
    return scale * (np.full(len(kept), c) if schedule == "constant" else c ** (timesteps / 1000.0))


def errors(kind: str, difference: Array, c: Array) -> Array:
    if kind == "l2":
        return difference**2
    if kind == "l1":
        return np.abs(difference)
    # the same as 2 (sqrt(d^2 + c^2) - c), without the difference of nearly equal numbers
    root = 2.0 * difference**2 / (np.sqrt(difference**2 + wide(c) ** 2) + wide(c))
    return root * wide(c) if kind == "huber" else root


def weight(rules: dict[str, float], kept: Array, prediction: str) -> Array:
    """All weights of the steps multiplied, [n]."""
    snr, is_v = kept / (1.0 - kept), prediction == "v"
    capped, found = np.minimum(snr, 1000.0), np.ones_like(kept)
    if gamma := rules.get("min_snr_gamma"):
        found = found * np.minimum(snr, gamma) / (snr + 1.0 if is_v else snr)
    if rules.get("debiased_estimation_loss"):
        found = found / (capped + 1.0 if is_v else np.sqrt(capped))
    if rules.get("scale_v_pred_loss_like_noise_pred") and is_v:
        found = found * capped / (1.0 + capped)
    if (share := rules.get("v_pred_like_loss")) and not is_v:
        found = found * (1.0 + share * (1.0 + 1.0 / capped))
    return found


def coarse_noise(noise: Array, layers: list[Array], discount: float) -> Array:
    total = noise + sum(discount**number * enlarged(layer, *noise.shape[1:]) for number, layer in enumerate(layers))
    return total / total.std(ddof=1)


def enlarged(layer: Array, height: int, width: int) -> Array:
    """Bilinear, pixel middles on pixel middles, edges repeated."""
    return np.einsum("yi,cij,xj->cyx", _blend(layer.shape[1], height), layer, _blend(layer.shape[2], width))


def _blend(old: int, new: int) -> Array:
    """[new, old]: how much each old place counts at each new one."""
    found = np.zeros((new, old))
    for place in range(new):
        middle = max((place + 0.5) * old / new - 0.5, 0.0)
        first = min(int(middle), old - 1)
        found[place, first] += 1.0 - (middle - first)
        found[place, min(first + 1, old - 1)] += middle - first
    return found


def offset_noise(noise: Array, shift: Array, latents: Array, offset: float, adaptive: float) -> Array:
    strength = np.maximum(offset + adaptive * np.abs(latents.mean(axis=(1, 2), keepdims=True)), 0.0)
    return noise + strength * shift


def logit_normal(normal: Array, mean: float, std: float) -> Array:
    return 1.0 / (1.0 + np.exp(-(mean + std * normal)))


def mode(uniform: Array, scale: float) -> Array:
    return 1.0 - uniform - scale * (np.cos(np.pi / 2.0 * uniform) ** 2 - 1.0 + uniform)
