"""Stable Diffusion 1.x: CLIP-L text encoder, epsilon prediction, latents scaled by 0.18215."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.text import LENGTH, joined

BETA_START, BETA_END, STEPS = 0.00085, 0.012, 1000


class SD1:
    """The family of Stable Diffusion 1.x."""

    name = "sd1"
    latent_scale = 0.18215

    def encode_text(self, bundle: ModelBundle, ids: Tensor, clip_skip: int) -> Tensor:
        """Token ids [batch, 77 * n] -> [batch, 75 * n + 2, width]; `clip_skip` 2: the layer before the last, final norm applied."""
        model, pieces = bundle.text_encoder, ids.reshape(-1, LENGTH)
        if clip_skip == 1:
            return joined(model(pieces, return_dict=True).last_hidden_state, len(ids))
        hidden = model(pieces, output_hidden_states=True, return_dict=True).hidden_states[-clip_skip]
        return joined(model.text_model.final_layer_norm(hidden), len(ids))

    def denoise(self, bundle: ModelBundle, noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """The U-Net's prediction for noisy latents [batch, 4, h, w]."""
        return bundle.unet(noisy, timesteps, encoder_hidden_states=conditioning, return_dict=False)[0]


def alphas_cumprod() -> Tensor:
    """Share of signal left at each of the 1000 steps ("scaled linear": linear in the root of beta), float32 [1000]."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def unet_config(state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel from the shapes of an LDM-keyed U-Net."""
    channels = [state[f"input_blocks.{3 * level + 1}.0.out_layers.0.weight"].shape[0] for level in range(4)]
    attends = [f"input_blocks.{3 * level + 1}.1.proj_in.weight" in state for level in range(4)]
    linear = state["middle_block.1.proj_in.weight"].ndim == 2
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": heads,
        "use_linear_projection": linear,
        "norm_num_groups": 32,
    }


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of AutoencoderKL from the shapes of an LDM-keyed VAE."""
    levels = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.down."))
    blocks = 1 + max(int(key.split(".")[4]) for key in state if key.startswith("encoder.down.0.block."))
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": state["post_quant_conv.weight"].shape[0],
        "block_out_channels": [state[f"encoder.down.{level}.block.0.norm2.weight"].shape[0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": blocks,
        "norm_num_groups": 32,
        "sample_size": 512,
    }


def text_config(state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    """Arguments of CLIPTextConfig from the shapes of a text encoder in transformers' names."""
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    layers = 1 + max(int(key.split(".")[3]) for key in state if key.startswith("text_model.encoder.layers."))
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
