"""Stable Diffusion 2.0 and 2.1: one OpenCLIP-H encoder without its last layer, heads of 64 channels, epsilon or v prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lora_trainer.models import layout
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection import infer_config
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.models.text_model import clip_text_model
from lora_trainer.models.tokenize import CHUNK_LENGTH, join_chunks, repad

PAD = 0
"""Padding token of open_clip; CLIP-L repeats the end token."""


class SD2:
    """The family of Stable Diffusion 2.x."""

    name = "sd2"
    latent_scale = 0.18215
    latent_channels = layout.row(name).latent_channels
    noise_schedule = SCALED_LINEAR
    uses_clip_skip = False
    uses_sizes = False
    upcast_attention = True

    def unet_config(self, state: Mapping[str, Tensor], heads: infer_config.Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel; 2.1 overflows in half precision unless attention is computed in float32."""
        return infer_config.unet_config(state, heads or infer_config.Heads(width=64), upcast_attention=True)

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """A text encoder module of the right shape, without the layer that is never used."""
        return clip_text_model(infer_config.text_config(state, heads, activation="gelu"))

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> states [batch, 75 * n + 2, width]; the layer is fixed, `clip_skip` has no effect."""
        pieces = repad(ids.reshape(-1, CHUNK_LENGTH), PAD)
        return Conditioning(join_chunks(bundle.text_encoder(pieces).last_hidden_state, len(ids)))

    def unused_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """None: the module has only layers that are used."""
        return (0,)

    def denoise(self, bundle: ModelBundle, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for noisy latents [batch, channels, h, w]."""
        prediction: Tensor = bundle.unet(noisy_latents, timesteps, encoder_hidden_states=conditioning.states, return_dict=False)[0]
        return prediction


FAMILY = SD2()
