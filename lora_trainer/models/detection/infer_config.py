"""Infers module configurations from tensor shapes under diffusers' and transformers' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs


@attrs.frozen
class Heads:
    """Attention heads of a U-Net, which shapes do not show: `counts` by level (or one for all), else `width` channels each."""

    counts: tuple[int, ...] = ()
    width: int = 64

    def of(self, level: int, channels: int) -> int:
        """Number of heads at a level with this number of channels."""
        return self.counts[min(level, len(self.counts) - 1)] if self.counts else max(1, channels // self.width)


CLIP_HEADS = {768: 12, 1024: 16, 1280: 20}


def text_heads(width: int) -> int:
    """Heads of a CLIP text encoder: by table for known widths, else 16 channels each."""
    return CLIP_HEADS.get(width, max(1, width // 16))


def unet_config(state: Mapping[str, Any], heads: Heads, *, upcast_attention: bool = False) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel from the shapes of a U-Net."""
    levels = unet_levels(state)
    channels, attends = [width for width, _ in levels], [depth > 0 for _, depth in levels]
    depths = [depth or 1 for _, depth in levels]
    depths[-1] = middle_depth(state) or depths[-1]
    config: dict[str, Any] = {
        "sample_size": 64,
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": _count(state, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "transformer_layers_per_block": depths,
        "cross_attention_dim": state["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": [heads.of(level, count) for level, count in enumerate(channels)],
        "use_linear_projection": state["mid_block.attentions.0.proj_in.weight"].ndim == 2,
        "upcast_attention": upcast_attention,
        "norm_num_groups": 32,
    }
    return config


def unet_levels(state: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """(channels, transformer blocks per attention; 0: no attention) of each level of a U-Net."""
    return tuple(
        (
            state[f"down_blocks.{level}.resnets.0.conv2.weight"].shape[0],
            _count(state, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\."),
        )
        for level in range(_count(state, r"down_blocks\.(\d+)\."))
    )


def middle_depth(state: Mapping[str, Any]) -> int:
    """Transformer blocks in a U-Net's mid block."""
    return _count(state, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")


def vae_config(state: Mapping[str, Any], groups: int = 32) -> dict[str, Any]:
    """Arguments of AutoencoderKL from the shapes of a VAE; `groups` of its group norms are not in the shapes."""
    levels = _count(state, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": state["post_quant_conv.weight"].shape[0],
        "block_out_channels": [state[f"encoder.down_blocks.{level}.resnets.0.norm2.weight"].shape[0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "norm_num_groups": groups,
        "sample_size": 512,
    }


def text_config(state: Mapping[str, Any], heads: int, *, activation: str = "quick_gelu") -> dict[str, Any]:
    """Arguments of CLIPTextConfig from the shapes of a text encoder."""
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    projection = state.get("text_projection.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(state, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads,
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "hidden_act": activation,
        "projection_dim": width if projection is None else projection.shape[0],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


TARGET = re.compile(r"(.*\.attentions\.\d+\.|text_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.).*\.weight")
"""Layers that a LoRA is applied to, and the (one-dimensional) norms between them."""


def _count(names: Iterable[str], pattern: str) -> int:
    """1 + the largest number that the pattern matches at the start of a name; 0 without a match."""
    compiled = re.compile(pattern)
    return 1 + max((int(match.group(1)) for name in names if (match := compiled.match(name))), default=-1)
