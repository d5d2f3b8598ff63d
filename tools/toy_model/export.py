"""Into the layout of Stable Diffusion checkpoints. Hosts normalise in 32 groups: the VAE with its 8 is set into one four times as wide."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_trainer.models import layout

HOST_GROUPS = 32


def checkpoint(unet: Any, vae: Any, text: Any, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """All tensors under their names in a checkpoint; the VAE widened where it has fewer groups than hosts have."""
    states = {
        layout.UNET: renamed(unet.state_dict(), layout.invert(layout.unet_prefixes())),
        layout.VAE: renamed(widened(vae), layout.invert(layout.vae_prefixes(len(vae.config.block_out_channels)))),
        layout.TEXT: _text(text.state_dict()),
    }
    return {prefix + name: tensor.to(dtype).contiguous().clone() for prefix, state in states.items() for name, tensor in state.items()}


def widened(vae: Any) -> dict[str, Tensor]:
    """The state of a VAE with the same output and 32 groups: new channels hold zeros and read nothing."""
    times = HOST_GROUPS // vae.config.norm_num_groups
    outside = {
        "encoder.conv_in.weight": (0,),
        "decoder.conv_in.weight": (0,),
        "encoder.conv_out.weight": (1,),
        "decoder.conv_out.weight": (1,),
    }
    found = {}
    for name, tensor in vae.state_dict().items():
        axes = outside.get(name, (0, 1))
        if name.startswith(("quant_conv", "post_quant_conv")) or name in ("encoder.conv_out.bias", "decoder.conv_out.bias"):
            axes = ()
        shape = [size * times if axis in axes else size for axis, size in enumerate(tensor.shape)]
        wide = torch.zeros(shape)
        wide[tuple(slice(0, size) for size in tensor.shape)] = tensor
        if ".to_q." in name:  # attention divides by the root of its width
            wide *= times**0.5
        found[name] = wide
    return found


def narrowed(wide: Any, narrow: Any) -> dict[str, Tensor]:
    """The state of a widened VAE without its zeros, in the shapes of `narrow`: the same output for a fraction of the work."""
    found, state = {}, wide.state_dict()
    for name, own in narrow.state_dict().items():
        tensor = state[name].float()[tuple(slice(0, size) for size in own.shape)].clone()
        if ".to_q." in name:
            tensor /= (HOST_GROUPS // narrow.config.norm_num_groups) ** 0.5
        found[name] = tensor
    return found


def write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Writes the checkpoint and beside it the packed file that ships; returns the checkpoint's sha256."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), metadata={"format": "pt"})
    content = path.read_bytes()
    path.with_suffix(".safetensors.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    return hashlib.sha256(content).hexdigest()


def renamed(state: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for old, new in layout.rename_keys(state, prefixes).items():
        tensor = state[old]
        if ".attentions.0." in old and new.startswith(("encoder.", "decoder.")) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # linear in diffusers, a 1 x 1 convolution in checkpoints
        found[new] = tensor
    if len(found) != len(state):
        raise ValueError(f"{len(state) - len(found)} tensors have no name in a checkpoint")
    return found


def _text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names with the beginning that newer transformers leave out."""
    named = {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}
