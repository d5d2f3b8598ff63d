"""Noise and timesteps: pure functions of (seed, epoch, picture, repeat), drawn on the CPU."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(*words: object) -> torch.Generator:
    """A CPU generator seeded by the words: the same words give the same numbers on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode("utf-8"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(shape: tuple[int, ...], steps: int, offset: float, *words: object) -> tuple[int, Tensor]:
    """Timestep in 0..steps-1 and noise of `shape` [4, h, w] for one picture.

    With `offset` each channel is shifted by a normal number times offset (Guttenberg 2023, noise offset).
    """
    generator = generator_for(*words)
    timestep = int(torch.randint(0, steps, (1,), generator=generator))
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise += offset * torch.randn((shape[0], 1, 1), generator=generator)
    return timestep, noise


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Latents at their step: sqrt(a) x + sqrt(1 - a) e, with `alphas` of shape [batch] (Ho et al. 2020, eq. 4)."""
    kept = alphas.view(-1, 1, 1, 1).to(latents.dtype)
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise
