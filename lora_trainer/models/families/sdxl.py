"""SDXL base: states of CLIP-L and OpenCLIP-G concatenated, pooled text and picture sizes, latents scaled by 0.13025."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.models import layout
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection import infer_config
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.models.text_model import clip_text_model
from lora_trainer.models.tokenize import CHUNK_LENGTH, eos_index, join_chunks, repad

PAD_G = 0
"""Padding token of the larger encoder."""
SIZE_VALUES = 6
"""Time ids: original height and width, crop top and left, target height and width."""

TIME_EMBED_DIM = 256
"""Width of the sinusoidal embedding of each time id."""


class SDXL:
    """The family of Stable Diffusion XL base."""

    name = "sdxl"
    latent_scale = 0.13025
    latent_channels = layout.row(name).latent_channels
    noise_schedule = SCALED_LINEAR
    uses_clip_skip = False
    uses_sizes = True
    upcast_attention = False

    def unet_config(self, state: Mapping[str, Tensor], heads: infer_config.Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel, with inputs for pooled text and time ids."""
        return infer_config.unet_config(state, heads or infer_config.Heads(width=64)) | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBED_DIM,
            "projection_class_embeddings_input_dim": state["add_embedding.linear_1.weight"].shape[1],
        }

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """A text encoder module of the right shape: 0 is CLIP-L, 1 OpenCLIP-G with its projection."""
        if number == 0:
            return clip_text_model(infer_config.text_config(state, heads))
        return clip_text_model(infer_config.text_config(state, heads, activation="gelu"), projection=True)

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> states [batch, 75 * n + 2, 2048] and pooled [batch, 1280].

        Both encoders use the layer before the last, without final norm; `clip_skip` has no effect. Pooled is the projected end token of
        a caption's first chunk.
        """
        first, second = bundle.text_encoders
        pieces = ids.reshape(-1, CHUNK_LENGTH)
        narrow = first(pieces, output_hidden_states=True).hidden_states[-2]
        padded = repad(pieces, PAD_G)
        wide = second.text_model(padded, output_hidden_states=True)
        states = join_chunks(torch.cat([narrow, wide.hidden_states[-2].to(narrow.dtype)], dim=-1), len(ids))
        ends = wide.last_hidden_state[torch.arange(len(padded), device=ids.device), eos_index(padded)]
        return Conditioning(states, second.text_projection(ends)[:: len(pieces) // len(ids)])

    def unused_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """CLIP-L's last layer; the other encoder's last layer is used for the pooled text."""
        return (1, 0)

    def denoise(self, bundle: ModelBundle, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for noisy latents [batch, channels, h, w]; if the sizes are unknown: those of the latents, uncropped."""
        sizes = conditioning.sizes
        if sizes is None:
            height, width = 8 * noisy_latents.shape[-2], 8 * noisy_latents.shape[-1]
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=noisy_latents.device).expand(
                len(noisy_latents), SIZE_VALUES
            )
        added = {"text_embeds": conditioning.pooled, "time_ids": sizes}
        prediction: Tensor = bundle.unet(
            noisy_latents, timesteps, encoder_hidden_states=conditioning.states, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction


FAMILY = SDXL()
