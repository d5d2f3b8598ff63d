"""Stable Diffusion 1.x: one CLIP-L encoder, eight heads at every level, latents scaled by 0.18215."""

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
from lora_trainer.models.tokenize import CHUNK_LENGTH, join_chunks


class SD1:
    """The family of Stable Diffusion 1.x."""

    name = "sd1"
    latent_scale = 0.18215
    latent_channels = layout.row(name).latent_channels
    noise_schedule = SCALED_LINEAR
    uses_clip_skip = True
    uses_sizes = False
    upcast_attention = False

    def unet_config(self, state: Mapping[str, Tensor], heads: infer_config.Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel; `heads` if the source has them."""
        return infer_config.unet_config(state, heads or infer_config.Heads((8,)))

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """A text encoder module of the right shape."""
        return clip_text_model(infer_config.text_config(state, heads))

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> states [batch, 75 * n + 2, width]; `clip_skip` 2: the layer before the last, final norm applied."""
        model, pieces = bundle.text_encoder, ids.reshape(-1, CHUNK_LENGTH)
        if clip_skip == 1:
            return Conditioning(join_chunks(model(pieces).last_hidden_state, len(ids)))
        hidden = model(pieces, output_hidden_states=True).hidden_states[-clip_skip]
        return Conditioning(join_chunks(model.text_model.final_layer_norm(hidden), len(ids)))

    def unused_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """For each text encoder, how many of its last layers are unused."""
        return (clip_skip - 1,)

    def denoise(self, bundle: ModelBundle, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for noisy latents [batch, channels, h, w]."""
        prediction: Tensor = bundle.unet(noisy_latents, timesteps, encoder_hidden_states=conditioning.states, return_dict=False)[0]
        return prediction


FAMILY = SD1()
