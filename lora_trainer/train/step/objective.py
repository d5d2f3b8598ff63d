"""From a batch to its losses: noise, the model's prediction, and its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from lora_trainer.config.schema import LossConfig
from lora_trainer.loss import noise as noising
from lora_trainer.loss import objectives
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning

Draw = Callable[..., noising.NoisyExample]


@attrs.frozen(eq=False)
class Batch:
    """The tensors of a step: latents, noise [n, channels, h, w]; timesteps [n]; conditioning [n, 77, width]; masks [n, 1, h, w] or None.

    `input_noise` is the noise that is really added to the latents, where that is not the noise to predict (ip_noise_gamma). `pooled`
    [n, width] and `sizes` [n, 6] are further conditioning of some families (models.conditioning).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Tensor
    masks: Tensor | None = None
    input_noise: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None


def make_batch(
    latents: Sequence[Tensor],
    keys: Sequence[tuple[object, ...]],
    encode_captions: Callable[[], Conditioning],
    loss_config: LossConfig,
    device: torch.device,
    masks: Sequence[Tensor | None] = (),
    sizes: Sequence[Sequence[int]] = (),
    draw: Draw = noising.draw_noise,
) -> Batch:
    """Draws each picture's timestep and noise from its own key, so that they do not depend on the batching.

    `latents`: [channels, h, w] of each picture. `masks`: loss weights [h, w] of each picture, None where all of it counts. `sizes`: six
    values of each picture, for families that read them. `draw` is the objective's.
    """
    conditioning = encode_captions()
    examples = [draw(latent, loss_config, *key) for latent, key in zip(latents, keys, strict=False)]
    return Batch(
        torch.stack(list(latents)).to(device),
        torch.stack([example.noise for example in examples]).to(device),
        torch.tensor([example.timestep for example in examples], device=device),
        conditioning.states,
        _stack_masks(latents, masks, device),
        torch.stack([example.input_noise for example in examples]).to(device) if loss_config.ip_noise_gamma else None,
        conditioning.pooled,
        torch.tensor(sizes, device=device) if sizes else None,
    )


def _stack_masks(latents: Sequence[Tensor], masks: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    full_masks = [torch.ones(latent.shape[-2:]) if mask is None else mask for latent, mask in zip(latents, masks, strict=True)]
    return torch.stack(full_masks).unsqueeze(1).to(device)


def per_image_losses(bundle: ModelBundle, batch: Batch, loss_config: LossConfig) -> Tensor:
    """Weighted loss of each picture of the batch, float32 [n].

    What lies outside a mask counts nothing; the mean is over the whole picture, so that a small masked part does not count more (as in
    sd-scripts).
    """
    objective = objectives.objective_for(bundle.prediction, bundle.alphas_cumprod.to(batch.latents.device))
    noisy_latents = objective.add_noise(batch.latents, batch.noise if batch.input_noise is None else batch.input_noise, batch.timesteps)
    conditioning = Conditioning(batch.conditioning, batch.pooled, batch.sizes)
    prediction = bundle.family.denoise(bundle, noisy_latents.to(bundle.dtype), batch.timesteps, conditioning)
    target = objective.target(batch.latents, batch.noise, batch.timesteps)
    threshold = objective.huber_threshold(loss_config, batch.timesteps)
    errors = objectives.elementwise_loss(loss_config.loss_type, prediction.float(), target, threshold)
    losses = (errors if batch.masks is None else errors * batch.masks).mean(dim=(1, 2, 3))
    for weight in objective.timestep_weights(loss_config, batch.timesteps):
        losses = losses * weight
    return losses


def apply_prior_weight(losses: Tensor, is_reg: Sequence[bool], prior_weight: float) -> Tensor:
    """Losses [n] with those of regularisation pictures times `prior_weight`; unchanged where there is none, or the weight is 1."""
    if prior_weight == 1.0 or not any(is_reg):
        return losses
    return losses * torch.tensor([prior_weight if reg else 1.0 for reg in is_reg], device=losses.device)
