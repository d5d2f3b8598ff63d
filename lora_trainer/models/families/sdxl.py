"""SDXL base: CLIP-L and OpenCLIP-G side by side, the text as a whole and the picture's sizes beside them, latents scaled by 0.13025."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.detection import infer_config
from lora_trainer.models.tokenize import LENGTH, first_end, joined, padded_with

PAD_G = 0
"""What fills up a caption for the larger encoder."""
SIZES = 6
"""Numbers that tell the sizes of a picture: original height and width, crop top and left, target height and width."""

FINENESS = 256
"""Sines and cosines that each of them is spread over."""


class SDXL:
    """The family of Stable Diffusion XL base."""

    name = "sdxl"
    latent_scale = 0.13025
    reads_clip_skip = False
    reads_sizes = True
    upcast_attention = False

    def unet_config(self, state: Mapping[str, Tensor], heads: infer_config.Heads | None) -> dict[str, Any]:
        """Arguments of UNet2DConditionModel, with its input for the text as a whole and the sizes."""
        return infer_config.unet_config(state, heads or infer_config.Heads(width=64)) | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": FINENESS,
            "projection_class_embeddings_input_dim": state["add_embedding.linear_1.weight"].shape[1],
        }

    def text_encoder(self, number: int, state: Mapping[str, Tensor], heads: int) -> nn.Module:
        """An empty text encoder of the right shape: 0 is CLIP-L, 1 OpenCLIP-G with its projection."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        if number == 0:
            return CLIPTextModel(CLIPTextConfig(**infer_config.text_config(state, heads)))
        return CLIPTextModelWithProjection(CLIPTextConfig(**infer_config.text_config(state, heads, activation="gelu")))

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Conditioning:
        """Token ids [batch, 77 * n] -> states [batch, 75 * n + 2, 2048] and pooled [batch, 1280].

        Of both encoders the layer before the last is read, without its final norm; `clip_skip` changes nothing. The text as a whole is
        the projected end token of a caption's first piece.
        """
        first, second = bundle.text_encoders
        pieces = ids.reshape(-1, LENGTH)
        narrow = first(pieces, output_hidden_states=True, return_dict=True).hidden_states[-2]
        padded = padded_with(pieces, PAD_G)
        wide = second.text_model(padded, output_hidden_states=True, return_dict=True)
        states = joined(torch.cat([narrow, wide.hidden_states[-2].to(narrow.dtype)], dim=-1), len(ids))
        ends = wide.last_hidden_state[torch.arange(len(padded), device=ids.device), first_end(padded)]
        return Conditioning(states, second.text_projection(ends)[:: len(pieces) // len(ids)])

    def unread_layers(self, bundle: ModelBundle, clip_skip: int) -> tuple[int, ...]:
        """CLIP-L's last layer; the last one of the other is read for the text as a whole."""
        return (1, 0)

    def denoise(self, bundle: ModelBundle, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction for noisy latents [batch, 4, h, w]; without known sizes they are those of the latents, not cropped."""
        sizes = conditioning.sizes
        if sizes is None:
            height, width = 8 * noisy.shape[-2], 8 * noisy.shape[-1]
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device).expand(len(noisy), SIZES)
        added = {"text_embeds": conditioning.pooled, "time_ids": sizes}
        answer: Tensor = bundle.unet(
            noisy, timesteps, encoder_hidden_states=conditioning.states, added_cond_kwargs=added, return_dict=False
        )[0]
        return answer


FAMILY = SDXL()
