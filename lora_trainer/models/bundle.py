"""A loaded model as training sees it: frozen modules with diffusers' names, and the noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection.infer_config import Heads
from lora_trainer.models.noise_schedule import NoiseSchedule


class Family(Protocol):
    """All that differs between model families. `name` is that of its row in models/layout.py."""

    name: str
    latent_scale: float
    latent_channels: int
    noise_schedule: NoiseSchedule
    uses_clip_skip: bool
    """Whether clip skip has an effect."""
    uses_sizes: bool
    """Whether its U-Net is conditioned on picture sizes."""
    upcast_attention: bool
    """Whether its attention overflows float16 unless it is computed in float32."""

    def unet_config(self, state: Mapping[str, Tensor], heads: Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel for tensors under diffusers' names; `heads` if the source has them."""
        ...

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """The empty module of a text encoder (0 is the first) for tensors under transformers' names."""
        ...

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> conditioning with states [batch, 75 * n + 2, width]."""
        ...

    def unused_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """For each text encoder, how many of its last layers are unused and so cannot be trained."""
        ...

    def denoise(self, bundle: ModelBundle, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for noisy_latents [batch, channels, h, w], same shape; `timesteps` [batch] in 0..1000."""
        ...


@attrs.define(eq=False)
class ModelBundle:
    """Modules of one model. `alphas_cumprod` is float32 of shape [1000] on the device; `dtype` is the U-Net's; `prediction` is "epsilon",
    "v" or "flow".

    `text_encoder_2` is SDXL's larger one; one tokenizer serves both, which only differ in padding.
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
