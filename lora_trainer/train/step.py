"""One batch to one loss: noise, the model's answer, and how far it is off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from lora_trainer.loss import noise as noising
from lora_trainer.loss.objectives import target
from lora_trainer.loss.weights import min_snr, signal_to_noise
from lora_trainer.models.bundle import ModelBundle


@attrs.frozen(eq=False)
class Batch:
    """All that a step sees. latents, noise [n, 4, h, w]; timesteps [n]; conditioning [n, 77, width]; masks [n, 1, h, w] or None."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Tensor
    masks: Tensor | None = None


@attrs.frozen
class LossRules:
    """What the loss depends on besides the batch."""

    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0


def noisy_batch(
    latents: Sequence[Tensor],
    keys: Sequence[tuple[object, ...]],
    captions: Callable[[], Tensor],
    rules: LossRules,
    device: torch.device,
    masks: Sequence[Tensor | None] = (),
) -> Batch:
    """Draws each picture's timestep and noise from its own key, so that the way of batching changes nothing.

    `masks`: weights [h, w] of each picture, None where all of it counts.
    """
    drawn = [noising.draw(tuple(latent.shape), 1000, rules.noise_offset, *key) for latent, key in zip(latents, keys, strict=False)]
    return Batch(
        torch.stack(list(latents)).to(device),
        torch.stack([noise for _, noise in drawn]).to(device),
        torch.tensor([timestep for timestep, _ in drawn], device=device),
        captions(),
        _stacked(latents, masks, device),
    )


def _stacked(latents: Sequence[Tensor], masks: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    whole = [torch.ones(latent.shape[-2:]) if mask is None else mask for latent, mask in zip(latents, masks, strict=True)]
    return torch.stack(whole).unsqueeze(1).to(device)


def picture_losses(bundle: ModelBundle, batch: Batch, rules: LossRules) -> Tensor:
    """Weighted squared error of each picture of the batch, float32 [n].

    What lies outside a mask adds nothing; the mean is over the whole picture, so that a small masked part does not count more (as in
    sd-scripts).
    """
    alphas = bundle.alphas_cumprod.to(batch.latents.device)[batch.timesteps]
    noisy = noising.add_noise(batch.latents, batch.noise, alphas)
    predicted = bundle.family.denoise(bundle, noisy.to(bundle.dtype), batch.timesteps, batch.conditioning)
    wanted = target(bundle.prediction, batch.latents, batch.noise, alphas)
    errors = functional.mse_loss(predicted.float(), wanted, reduction="none")
    losses = (errors if batch.masks is None else errors * batch.masks).mean(dim=(1, 2, 3))
    if rules.min_snr_gamma:
        losses = losses * min_snr(signal_to_noise(alphas), rules.min_snr_gamma, bundle.prediction)
    return losses


def weighted(losses: Tensor, is_reg: Sequence[bool], prior_weight: float) -> Tensor:
    """Losses [n] with those of regularisation pictures weighed; untouched where there is none, or the weight is 1."""
    if prior_weight == 1.0 or not any(is_reg):
        return losses
    return losses * torch.tensor([prior_weight if reg else 1.0 for reg in is_reg], device=losses.device)
