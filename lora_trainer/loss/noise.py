"""Noise and timesteps: pure functions of (seed, epoch, picture, repeat), drawn on the CPU.

What an option draws besides comes from a generator of its own, so that switching it on changes nothing else that is drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from lora_trainer.config.schema import LossConfig


def generator_for(*words: object) -> torch.Generator:
    """A CPU generator seeded by the words: the same words give the same numbers on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode("utf-8"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@attrs.frozen(eq=False)
class NoisyExample:
    """One showing of one picture: `timestep` in 0..999, `noise` [4, h, w] that the model should find, `added` what it is shown."""

    timestep: int
    noise: Tensor
    added: Tensor


def draw_noise(latents: Tensor, loss_config: LossConfig, *words: object) -> NoisyExample:
    """Timestep and noise for the latents [4, h, w] of one picture, by the words that name this showing."""
    generator = generator_for(*words)
    timestep = int(torch.randint(loss_config.min_timestep, loss_config.max_timestep, (1,), generator=generator))
    noise = torch.randn(tuple(latents.shape), generator=generator)
    if loss_config.noise_offset:
        shift = torch.randn((latents.shape[0], 1, 1), generator=generator)
        noise = offset_noise(noise, shift, offset_strength(latents, _strength(loss_config, *words), loss_config.adaptive_noise_scale))
    if loss_config.multires_noise_iterations:
        layers = coarse_layers(tuple(latents.shape), loss_config.multires_noise_iterations, generator_for(*words, "coarse noise"))
        noise = coarse_noise(noise, layers, loss_config.multires_noise_discount)
    if loss_config.timestep_sampling != "uniform":
        timestep = step_at(_share(loss_config, *words), loss_config.min_timestep, loss_config.max_timestep)
    return NoisyExample(timestep, noise, _perturbed(noise, loss_config, *words))


def _strength(rules: LossConfig, *words: object) -> float | Tensor:
    if not rules.noise_offset_random_strength:
        return rules.noise_offset
    return torch.rand(1, generator=generator_for(*words, "offset strength")) * rules.noise_offset


def _share(rules: LossConfig, *words: object) -> float:
    generator = generator_for(*words, "timestep")
    if rules.timestep_sampling == "mode":
        return float(mode(torch.rand(1, generator=generator), rules.mode_scale))
    return float(logit_normal(torch.randn(1, generator=generator), rules.logit_mean, rules.logit_std))


def _perturbed(noise: Tensor, rules: LossConfig, *words: object) -> Tensor:
    """Noise with a little more of it: e + gamma e' (Ning et al. 2023); the noise itself where that is off."""
    if not rules.ip_noise_gamma:
        return noise
    generator = generator_for(*words, "input perturbation")
    more = torch.randn(tuple(noise.shape), generator=generator)
    if rules.ip_noise_gamma_random_strength:
        return noise + torch.rand(1, generator=generator) * rules.ip_noise_gamma * more
    return noise + rules.ip_noise_gamma * more


def offset_strength(latents: Tensor, offset: float | Tensor, adaptive: float) -> float | Tensor:
    """offset + adaptive |mean of each channel|, never below 0, as [4, 1, 1] (sd-scripts' adaptive_noise_scale); plain where that is 0."""
    if not adaptive:
        return offset
    return (offset + adaptive * latents.mean(dim=(1, 2), keepdim=True).abs().cpu()).clamp(min=0.0)


def offset_noise(noise: Tensor, shift: Tensor, strength: float | Tensor) -> Tensor:
    """Noise [4, h, w] with each channel shifted by strength times `shift` [4, 1, 1], standard normal (Guttenberg 2023, noise offset)."""
    return noise + strength * shift


def coarse_layers(shape: tuple[int, ...], iterations: int, generator: torch.Generator) -> list[Tensor]:
    """Noise of smaller and smaller sizes: layer i has 1 / r^i of each side, r drawn anew from [2, 4); ends with a side of one."""
    channels, height, width = shape
    layers: list[Tensor] = []
    for number in range(iterations):
        ratio = (2.0 + 2.0 * float(torch.rand(1, generator=generator))) ** number
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        layers.append(torch.randn((channels, rows, columns), generator=generator))
        if 1 in (rows, columns):
            break
    return layers


def coarse_noise(noise: Tensor, layers: Sequence[Tensor], discount: float) -> Tensor:
    """Noise plus the sum of discount^i times layer i, enlarged bilinearly; then of spread 1 (Whitaker 2023, multires noise)."""
    for number, layer in enumerate(layers):
        enlarged = functional.interpolate(layer[None], size=tuple(noise.shape[1:]), mode="bilinear", align_corners=False)[0]
        noise = noise + enlarged * discount**number
    return noise / noise.std()


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Latents at their step: sqrt(a) x + sqrt(1 - a) e, with `alphas` of shape [batch] (Ho et al. 2020, eq. 4)."""
    kept = alphas.view(-1, 1, 1, 1).to(latents.dtype)
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Shares around one amount: the logistic function of mean + std n, n standard normal (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(mean + std * normal)


def mode(uniform: Tensor, scale: float) -> Tensor:
    """Shares with more weight in the middle (scale > 0) or at both ends (< 0), from u in [0, 1) (Esser et al. 2024, eq. 20)."""
    return 1.0 - uniform - scale * (torch.cos(uniform * (math.pi / 2)) ** 2 - 1.0 + uniform)


def step_at(share: float, low: int, high: int) -> int:
    """The step low..high-1 at a share of the range."""
    return min(max(low + int(share * (high - low)), low), high - 1)
