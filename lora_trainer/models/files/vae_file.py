"""Checks VAE files by key names and shapes (no torch, nothing is loaded)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.files import diffusers_folder
from lora_trainer.models.files.tensor_file import TensorInfo, contents

NEEDED = ("encoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight", "decoder.conv_in.weight")
LDM, DIFFUSERS = "encoder.down.", "encoder.down_blocks."


def find_vae_file(path: Path) -> Path:
    """The file of a VAE: `path` itself, or that in a VAE's or model's folder. Raises ModelError."""
    if not path.is_dir():
        return path
    inner = path / diffusers_folder.PARTS["vae"]
    return diffusers_folder.weight_files(inner if inner.is_dir() else path)[0]


def check_vae(path: Path) -> None:
    """Raises ModelError that says what a file or folder is if it is not a VAE of Stable Diffusion 1, 2 or XL."""
    infos = {name.removeprefix(layout.VAE): entry for name, entry in contents(find_vae_file(path)).tensors.items()}
    if (kind := _untrainable_kind(infos)) is not None:
        raise ModelError(
            "{path} is {kind}.", path=str(path), kind=kind, fix="Choose a VAE of Stable Diffusion 1, 2 or XL, or leave the field empty."
        )


def _untrainable_kind(infos: Mapping[str, TensorInfo]) -> Message | None:
    into = infos.get("decoder.conv_in.weight")
    if into is not None and into.ndim == 4 and into.shape[1] not in layout.LATENT_CHANNELS:
        return say("a VAE of {count} channels, as other families of models have", count=into.shape[1])
    if all(name in infos for name in NEEDED) and any(name.startswith((LDM, DIFFUSERS)) for name in infos):
        return None
    if any(name.startswith(("decoder.layers.", "encoder.layers.", "taesd_")) for name in infos) or "1.weight" in infos:
        return say("a small stand-in for a VAE (TAESD), which only draws previews")
    return say("not a VAE in Stable Diffusion's layout")
