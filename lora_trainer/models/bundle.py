"""What training sees of a model: modules in diffusers' names, all frozen, and the noise schedule's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection.infer_config import Heads


class Family(Protocol):
    """All that differs between families of models. `name` is that of its row in models/layout.py."""

    name: str
    latent_scale: float
    reads_clip_skip: bool
    """Whether a clip skip changes what is read of the text."""
    reads_sizes: bool
    """Whether its U-Net is told the sizes of a picture."""
    upcast_attention: bool
    """Whether its attention overflows float16 unless it is summed in float32."""

    def unet_config(self, state: Mapping[str, Tensor], heads: Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel for tensors under diffusers' names; `heads` where the source tells them."""
        ...

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """The empty module of a text encoder (0 is the first) for tensors under transformers' names."""
        ...

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> what the U-Net reads, states [batch, 75 * n + 2, width]."""
        ...

    def unread_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """By text encoder, how many of its last layers nothing reads: they cannot learn."""
        ...

    def denoise(self, bundle: ModelBundle, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction, shape of `noisy` [batch, 4, h, w]; `timesteps` [batch] in 0..999."""
        ...


@attrs.define(eq=False)
class ModelBundle:
    """Modules of one model. `alphas_cumprod` is float32 of shape [1000] on the device; `dtype` is the U-Net's.

    `text_encoder_2` is SDXL's larger one; the one tokenizer serves both, they differ in padding only.
    """

    family: Family
    unet: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    vae: nn.Module
    alphas_cumprod: Tensor
    prediction: str
    dtype: torch.dtype
    device: torch.device
    text_encoder_2: nn.Module | None = None
    zero_terminal_snr: bool = False

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """One, or SDXL's two."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

    def modules(self) -> tuple[nn.Module, ...]:
        """U-Net, text encoders, VAE."""
        return self.unet, *self.text_encoders, self.vae
