"""What training sees of a model: modules in diffusers' names, all frozen, and the noise schedule's numbers."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn


class Family(Protocol):
    """All that differs between families of models."""

    name: str
    latent_scale: float

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Tensor:
        """Token ids [batch, 77 * n] -> what the U-Net reads [batch, 75 * n + 2, width]."""
        ...

    def denoise(self, bundle: ModelBundle, noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """The U-Net's prediction, shape of `noisy` [batch, 4, h, w]; `timesteps` [batch] in 0..999."""
        ...


@attrs.define(eq=False)
class ModelBundle:
    """Modules of one model. `alphas_cumprod` is float32 of shape [1000] on the device; `dtype` is the U-Net's."""

    family: Family
    unet: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    vae: nn.Module
    alphas_cumprod: Tensor
    prediction: str
    dtype: torch.dtype
    device: torch.device

    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """U-Net, text encoder, VAE."""
        return self.unet, self.text_encoder, self.vae
