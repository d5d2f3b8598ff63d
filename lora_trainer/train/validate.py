"""Validation loss: pictures that are never trained on, ten fixed timesteps, noise that never changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_trainer.loss.noise import generator_for
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.train.runtime import Precision, computing
from lora_trainer.train.step import Batch, LossRules, picture_losses

TIMESTEPS = tuple(range(50, 1000, 100))
PLAIN = LossRules()


def validation_loss(
    bundle: ModelBundle,
    latents: Sequence[Tensor],
    keys: Sequence[str],
    conditioning: Callable[[int], Tensor],
    precision: Precision,
    keep_going: Callable[[], bool] = lambda: True,
) -> float | None:
    """Mean squared error over pictures and t = 50, 150 .. 950, weight 1. None when `keep_going` turned False.

    `conditioning(i)` gives [1, 77, width] of picture i. Noise depends on the picture's key and t only: runs compare.
    """
    total = 0.0
    for number, (latent, key) in enumerate(zip(latents, keys, strict=False)):
        if not keep_going():
            return None
        noise = [torch.randn(latent.shape, generator=generator_for("validation", key, t)) for t in TIMESTEPS]
        count = len(TIMESTEPS)
        with computing(precision, bundle.device, grad=False):
            batch = Batch(
                latent.unsqueeze(0).expand(count, *latent.shape).to(bundle.device),
                torch.stack(noise).to(bundle.device),
                torch.tensor(TIMESTEPS, device=bundle.device),
                conditioning(number).expand(count, -1, -1),
            )
            total += float(picture_losses(bundle, batch, PLAIN).mean())
    return total / len(latents)
