"""One batch to one loss: noise, the model's answer, and how far it is off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from lora_trainer.config.schema import LossConfig
from lora_trainer.loss import noise as noising
from lora_trainer.loss import weights
from lora_trainer.loss.objectives import errors, huber_threshold, target
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning


@attrs.frozen(eq=False)
class Batch:
    """All that a step sees. latents, noise [n, 4, h, w]; timesteps [n]; conditioning [n, 77, width]; masks [n, 1, h, w] or None.

    `added` is the noise that the pictures are shown with, where it is not the noise that should be found. `pooled` [n, width] and `sizes`
    [n, 6] are what else a family's U-Net reads (models.conditioning).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Tensor
    masks: Tensor | None = None
    added: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None


def make_batch(
    latents: Sequence[Tensor],
    keys: Sequence[tuple[object, ...]],
    captions: Callable[[], Conditioning],
    loss_config: LossConfig,
    device: torch.device,
    masks: Sequence[Tensor | None] = (),
    sizes: Sequence[Sequence[int]] = (),
) -> Batch:
    """Draws each picture's timestep and noise from its own key, so that the way of batching changes nothing.

    `masks`: weights [h, w] of each picture, None where all of it counts. `sizes`: six numbers of each picture, for families that read them.
    """
    told = captions()
    drawn = [noising.draw_noise(latent, loss_config, *key) for latent, key in zip(latents, keys, strict=False)]
    return Batch(
        torch.stack(list(latents)).to(device),
        torch.stack([one.noise for one in drawn]).to(device),
        torch.tensor([one.timestep for one in drawn], device=device),
        told.states,
        _stacked(latents, masks, device),
        torch.stack([one.added for one in drawn]).to(device) if loss_config.ip_noise_gamma else None,
        told.pooled,
        torch.tensor(sizes, device=device) if sizes else None,
    )


def _stacked(latents: Sequence[Tensor], masks: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    whole = [torch.ones(latent.shape[-2:]) if mask is None else mask for latent, mask in zip(latents, masks, strict=True)]
    return torch.stack(whole).unsqueeze(1).to(device)


def per_image_losses(bundle: ModelBundle, batch: Batch, loss_config: LossConfig) -> Tensor:
    """Weighted error of each picture of the batch, float32 [n].

    What lies outside a mask adds nothing; the mean is over the whole picture, so that a small masked part does not count more (as in
    sd-scripts).
    """
    alphas = bundle.alphas_cumprod.to(batch.latents.device)[batch.timesteps]
    noisy = noising.add_noise(batch.latents, batch.noise if batch.added is None else batch.added, alphas)
    told = Conditioning(batch.conditioning, batch.pooled, batch.sizes)
    predicted = bundle.family.denoise(bundle, noisy.to(bundle.dtype), batch.timesteps, told)
    wanted = target(bundle.prediction, batch.latents, batch.noise, alphas)
    found = errors(loss_config.loss_type, predicted.float(), wanted, _threshold(loss_config, batch.timesteps, alphas))
    losses = (found if batch.masks is None else found * batch.masks).mean(dim=(1, 2, 3))
    for weight in timestep_weights(loss_config, alphas, bundle.prediction):
        losses = losses * weight
    return losses


def _threshold(loss_config: LossConfig, timesteps: Tensor, alphas: Tensor) -> Tensor | None:
    if loss_config.loss_type not in ("huber", "smooth_l1"):
        return None
    return huber_threshold(loss_config.huber_schedule, timesteps, alphas, loss_config.huber_c, loss_config.huber_scale)


def timestep_weights(loss_config: LossConfig, alphas: Tensor, prediction: str) -> list[Tensor]:
    """Each weight [n] that the amounts of noise give to their pictures; a weight for models of the other prediction is left out."""
    if not (
        loss_config.min_snr_gamma
        or loss_config.scale_v_pred_loss_like_noise_pred
        or loss_config.v_pred_like_loss
        or loss_config.debiased_estimation_loss
    ):
        return []
    snr, found = weights.signal_to_noise(alphas), []
    if loss_config.min_snr_gamma:
        found.append(weights.min_snr(snr, loss_config.min_snr_gamma, prediction))
    if loss_config.scale_v_pred_loss_like_noise_pred and prediction == "v":
        found.append(weights.like_noise(snr))
    if loss_config.v_pred_like_loss and prediction == "epsilon":
        found.append(weights.with_v_like(snr, loss_config.v_pred_like_loss))
    if loss_config.debiased_estimation_loss:
        found.append(weights.debiased(snr, prediction))
    return found


def mean_loss(losses: Tensor, is_reg: Sequence[bool], prior_weight: float) -> Tensor:
    """Losses [n] with those of regularisation pictures weighed; untouched where there is none, or the weight is 1."""
    if prior_weight == 1.0 or not any(is_reg):
        return losses
    return losses * torch.tensor([prior_weight if reg else 1.0 for reg in is_reg], device=losses.device)
