"""Noise and timesteps, as pure functions of (seed, epoch, image, repeat), drawn on the CPU.

Each option draws from a generator of its own, so that switching it on changes no other draw. Formulas: x latents, e standard normal noise,
a the cumulative product of alphas (`alphas_cumprod`) at the timestep.
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
from lora_trainer.models.noise_schedule import RectifiedFlow, shift_noise_share


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of the key: the same key gives the same draws on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode("utf-8"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@attrs.frozen(eq=False)
class NoisyExample:
    """One example: `timestep` in 0..999, or 0..1000 and no whole number for rectified flow; `noise` [c, h, w] as the target, `input_noise`
    of the same shape as added to the latents.
    """

    timestep: float
    noise: Tensor
    input_noise: Tensor


def draw_noise(latents: Tensor, loss_config: LossConfig, *key: object, flow: RectifiedFlow | None = None) -> NoisyExample:
    """Timestep and noise for the latents [c, h, w] of one image, seeded by the key of this example; of a `flow`, any time between 0 and 1.

    The noise is the same with and without `flow`.
    """
    generator = generator_for(*key)
    timestep: float = int(torch.randint(loss_config.min_timestep, loss_config.max_timestep, (1,), generator=generator))
    noise = torch.randn(tuple(latents.shape), generator=generator)
    if loss_config.noise_offset:
        shift = torch.randn((latents.shape[0], 1, 1), generator=generator)
        noise = offset_noise(noise, shift, offset_strength(latents, _offset_strength(loss_config, *key), loss_config.adaptive_noise_scale))
    if loss_config.multires_noise_iterations:
        levels = multires_levels(tuple(latents.shape), loss_config.multires_noise_iterations, generator_for(*key, "coarse noise"))
        noise = multires_noise(noise, levels, loss_config.multires_noise_discount)
    if flow is not None:
        share = shift_noise_share(_timestep_share(loss_config, *key), loss_config.discrete_flow_shift)
        timestep = flow_timestep_at(share, loss_config.min_timestep, loss_config.max_timestep)
    elif loss_config.timestep_sampling != "uniform":
        timestep = timestep_at(_timestep_share(loss_config, *key), loss_config.min_timestep, loss_config.max_timestep)
    return NoisyExample(timestep, noise, _perturb(noise, loss_config, *key))


def _offset_strength(loss_config: LossConfig, *key: object) -> float | Tensor:
    if not loss_config.noise_offset_random_strength:
        return loss_config.noise_offset
    return torch.rand(1, generator=generator_for(*key, "offset strength")) * loss_config.noise_offset


def _timestep_share(loss_config: LossConfig, *key: object) -> float:
    generator = generator_for(*key, "timestep")
    if loss_config.timestep_sampling == "uniform":
        return float(torch.rand(1, generator=generator))
    if loss_config.timestep_sampling == "mode":
        return float(mode_sampling(torch.rand(1, generator=generator), loss_config.mode_scale))
    return float(logit_normal(torch.randn(1, generator=generator), loss_config.logit_mean, loss_config.logit_std))


def _perturb(noise: Tensor, loss_config: LossConfig, *key: object) -> Tensor:
    """Input perturbation e + gamma e', e' standard normal (Ning et al. 2023, https://arxiv.org/abs/2301.11706); e where gamma is 0."""
    if not loss_config.ip_noise_gamma:
        return noise
    generator = generator_for(*key, "input perturbation")
    perturbation = torch.randn(tuple(noise.shape), generator=generator)
    if loss_config.ip_noise_gamma_random_strength:
        return noise + torch.rand(1, generator=generator) * loss_config.ip_noise_gamma * perturbation
    return noise + loss_config.ip_noise_gamma * perturbation


def offset_strength(latents: Tensor, offset: float | Tensor, adaptive: float) -> float | Tensor:
    """max(0, offset + adaptive |mean(x)|) for each channel of x [c, h, w], as [c, 1, 1]; offset where `adaptive` is 0.

    Source: sd-scripts' adaptive_noise_scale.
    """
    if not adaptive:
        return offset
    return (offset + adaptive * latents.mean(dim=(1, 2), keepdim=True).abs().cpu()).clamp(min=0.0)


def offset_noise(noise: Tensor, shift: Tensor, strength: float | Tensor) -> Tensor:
    """e + strength * shift, for e [c, h, w] and a standard normal `shift` [c, 1, 1].

    Source: Guttenberg 2023, https://www.crosslabs.org/blog/diffusion-with-offset-noise
    """
    return noise + strength * shift


def multires_levels(shape: tuple[int, ...], iterations: int, generator: torch.Generator) -> list[Tensor]:
    """Noise at lower and lower resolutions: level i has 1 / r^i of each side, r drawn anew from [2, 4); ends at a side of one."""
    channels, height, width = shape
    levels: list[Tensor] = []
    for number in range(iterations):
        ratio = (2.0 + 2.0 * float(torch.rand(1, generator=generator))) ** number
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        levels.append(torch.randn((channels, rows, columns), generator=generator))
        if 1 in (rows, columns):
            break
    return levels


def multires_noise(noise: Tensor, levels: Sequence[Tensor], discount: float) -> Tensor:
    """e + sum over i of discount^i * upsample(level i), bilinear, then divided by its standard deviation; [c, h, w].

    Source: Whitaker 2023, multi-resolution noise for diffusion model training (sd-scripts' multires_noise)
    """
    for index, level in enumerate(levels):
        upsampled = functional.interpolate(level[None], size=tuple(noise.shape[1:]), mode="bilinear", align_corners=False)[0]
        noise = noise + upsampled * discount**index
    return noise / noise.std()


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy latents sqrt(a) x + sqrt(1 - a) e, [batch, c, h, w]; `alphas_cumprod` a is [batch] (Ho et al. 2020, eq. 4)."""
    a = alphas_cumprod.view(-1, 1, 1, 1).to(latents.dtype)
    return a.sqrt() * latents + (1.0 - a).sqrt() * noise


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Timestep as a share in (0, 1): sigmoid(mean + std n), n standard normal (Esser et al. 2024, eq. 19, https://arxiv.org/abs/2403.03206)."""
    return torch.sigmoid(mean + std * normal)


def mode_sampling(uniform: Tensor, scale: float) -> Tensor:
    """Timestep as a share: 1 - u - scale (cos^2(pi u / 2) - 1 + u), u uniform in [0, 1) (Esser et al. 2024, eq. 20).

    More weight in the middle (scale > 0) or at both ends (scale < 0).
    """
    return 1.0 - uniform - scale * (torch.cos(uniform * (math.pi / 2)) ** 2 - 1.0 + uniform)


def add_noise_on_line(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noisy latents (1 - t) x + t e, [batch, c, h, w]; `t` in 0..1 is [batch] (Liu et al. 2022, eq. 1)."""
    t = t.view(-1, 1, 1, 1).to(latents.dtype)
    return (1.0 - t) * latents + t * noise


def flow_timestep_at(share: float, low: int, high: int) -> float:
    """The timestep between low and high at a share of the range."""
    return low + share * (high - low)


def timestep_at(share: float, low: int, high: int) -> int:
    """The timestep low..high-1 at a share of the range."""
    return min(max(low + int(share * (high - low)), low), high - 1)
