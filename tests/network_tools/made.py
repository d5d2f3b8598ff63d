"""Small networks of every kind on the layers of a small checkpoint, filled at random, and what each adds to a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, checkpoint_layers
from lora_trainer.config.choices.networks import NETWORK_KINDS, LayerShape
from lora_trainer.models.detection.infer_config import TARGET

WORDS = {"ss_base_model_version": "sd_v1", "ss_output_name": "old", "ss_network_dim": "4", "ss_sd_model_name": "base.safetensors"}
CONVOLUTIONS = ("down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.conv2", "up_blocks.1.upsamplers.0.conv")
NORMS = ("down_blocks.0.resnets.0.norm1", "up_blocks.3.attentions.0.norm")


def chosen(checkpoint: Path, paths: Iterable[str] = ()) -> dict[str, CheckpointLayer]:
    """The attention layers of a checkpoint, and the layers at these paths."""
    layers = checkpoint_layers(checkpoint)[1]
    return {
        name: layer
        for name, layer in layers.items()
        if layer.path in paths or (len(layer.shape) > 1 and TARGET.fullmatch(f"{layer.path}.weight"))
    }


def some(layers: Mapping[str, CheckpointLayer], step: int = 9) -> dict[str, CheckpointLayer]:
    """Every ninth of them: of all blocks and parts some."""
    return dict(list(layers.items())[::step])


def state_of(
    layers: Mapping[str, CheckpointLayer], kind: str = "lora", rank: int = 4, seed: int = 0, alpha: float = 2.0, **options: Any
) -> dict[str, Tensor]:
    """Random tensors of one kind on these layers; norms get the kind that is made for them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, layer in layers.items():
        facts = NETWORK_KINDS["norm" if len(layer.shape) == 1 else kind]
        shapes = facts.shapes(LayerShape(layer.shape, layer.bias is not None), rank, options if len(layer.shape) > 1 else {})
        for suffix, shape in shapes.items():
            filled = torch.randn(shape, generator=generator) * 0.1
            state[f"{name}.{suffix}"] = filled.abs() + 0.5 if suffix in ("dora_scale", "rescale") else filled
        if facts.saves_alpha:
            state[f"{name}.alpha"] = torch.tensor(0.0 if kind == "oft" else alpha)
    return state


def write(path: Path, state: Mapping[str, Tensor], words: Mapping[str, str] = WORDS) -> Path:
    """A file of these tensors."""
    save_file(dict(state), str(path), dict(words))
    return path


def deltas(path: Path) -> dict[str, Tensor]:
    """up @ down * alpha / rank of every plain LoRA layer, by the formula alone."""
    from safetensors.torch import load_file

    state = load_file(str(path))
    found = {}
    for key, down in state.items():
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            up, scale = state[f"{name}.lora_up.weight"], float(state[f"{name}.alpha"]) / down.shape[0]
            found[name] = (up.double().flatten(1) @ down.double().flatten(1)) * scale
    return found
