"""Modules' tensors back to a checkpoint under the names that WebUIs load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.models import layout
from lora_trainer.models.files import tensor_file

LOGIT_SCALE = math.log(100.0)
"""Final value of CLIP's training; not used in diffusion models."""


def to_checkpoint(parts: Mapping[str, Mapping[str, Tensor]], family: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint in LDM's, SGM's and open_clip's names, of parts in diffusers' and transformers' ("unet", "vae", "text" ...).

    Only tensors that those layouts concatenate or transpose are copied. Stable Diffusion 2's encoder lacks its unused last layer:
    `complete_checkpoint` adds it.
    """
    prefixes = layout.part_prefixes(family)
    return {
        f"{prefixes[part]}{name}": tensor
        for part, state in parts.items()
        for name, tensor in host_names(part, state, open_clip=layout.is_open_clip(prefixes[part])).items()
    }


def complete_checkpoint(parts: Mapping[str, Mapping[str, Tensor]], family: str, original: Path) -> dict[str, Tensor]:
    """The original checkpoint with these parts replaced. Raises ModelError.

    All else in its file stays: unused layers, CLIP's logit scale, prediction marks; tensors keep the dtype of the original. A folder has
    none of that: tensors that WebUIs require are created.
    """
    converted = to_checkpoint(parts, family)
    if original.is_dir():
        return converted | _unused_tensors(converted, family)
    original_tensors = tensor_file.tensors(original)
    replaced = _replaced_names(original_tensors, parts, family)
    untouched = {name: tensor for name, tensor in original_tensors.items() if name not in replaced}
    return untouched | {
        name: tensor.to(original_tensors[name].dtype) if name in original_tensors else tensor for name, tensor in converted.items()
    }


class _Name(str):
    """A name that models/layout.py can rename like a tensor."""

    __slots__ = ()

    def chunk(self, parts: int) -> list[_Name]:
        """The parts of a packed matrix have its name."""
        return [self] * parts

    def t(self) -> _Name:
        """Transposed."""
        return self


def _replaced_names(original_tensors: Mapping[str, Tensor], parts: Mapping[str, object], family: str) -> set[str]:
    """Names in a checkpoint that are loaded into these parts' modules."""
    prefixes, keys = layout.part_prefixes(family), layout.split_keys(original_tensors, family)
    return {
        f"{prefixes[part]}{name}"
        for part, names in keys.items()
        if part in parts
        for name in layout.rename_part(part, {name: _Name(name) for name in names}, family).values()
    }


def _unused_tensors(converted: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Unused tensors of open_clip's encoders: last layers (copies of the one before), projection and logit scale."""
    prefix = next((prefix for prefix in layout.row(family).text if prefix.endswith("model.")), "")
    if not prefix:
        return {}
    blocks, width = f"{prefix}transformer.resblocks.", converted[f"{prefix}ln_final.weight"].shape[0]
    last = max(int(name[len(blocks) :].partition(".")[0]) for name in converted if name.startswith(blocks))
    layers = {
        name.replace(f"{blocks}{last}.", f"{blocks}{last + number}."): tensor.clone()
        for number in range(1, layout.row(family).unused_text_layers + 1)
        for name, tensor in converted.items()
        if name.startswith(f"{blocks}{last}.")
    }
    likeness = converted[f"{prefix}ln_final.weight"]
    projection = {} if f"{prefix}text_projection" in converted else {f"{prefix}text_projection": torch.eye(width, dtype=likeness.dtype)}
    return projection | {f"{prefix}logit_scale": torch.tensor(LOGIT_SCALE)} | layers


def host_names(part: str, state: Mapping[str, Tensor], *, open_clip: bool = False) -> dict[str, Tensor]:
    """The tensors of one part under checkpoint names, without the part's prefix."""
    if part.startswith("text"):
        return _open_clip(state) if open_clip else dict(state)
    if part == "unet":
        prefixes = layout.unet_prefixes(_levels(state))
    else:
        prefixes = layout.vae_prefixes(len({key.split(".")[2] for key in state if key.startswith("encoder.down_blocks.")}))
    converted = {}
    for new, old in layout.rename_keys(state, layout.invert(prefixes)).items():
        convolution = part == "vae" and ".attn_1." in old and state[new].ndim == 2
        converted[old] = state[new][:, :, None, None] if convolution else state[new]
    return converted


def _levels(state: Mapping[str, Tensor]) -> list[bool]:
    count = len({key.split(".")[1] for key in state if key.startswith("down_blocks.")})
    return [any(key.startswith(f"down_blocks.{level}.attentions.") for key in state) for level in range(count)]


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder in open_clip's names: query, key and value as one matrix, the projection transposed."""
    inner, ends = layout.invert(layout.OPEN_CLIP_LAYER), layout.invert(layout.OPEN_CLIP)
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in ends:
            converted[ends[key]] = tensor.t().contiguous() if key == layout.OPEN_CLIP["text_projection"] else tensor
        elif ".layers." in key:
            number, _, rest = key.partition(".layers.")[2].partition(".")
            block, (name, kind) = f"transformer.resblocks.{number}", rest.split(".")[-2:]
            if name == layout.PACKED[0]:
                packed = [state[key.replace(layout.PACKED[0], other)] for other in layout.PACKED]
                converted[f"{block}.attn.in_proj_{kind}"] = torch.cat(packed)
            elif name not in layout.PACKED:
                converted.update({f"{block}.{old}": tensor for old in layout.rename_keys([rest], inner).values()})
        else:
            converted.update(dict.fromkeys(layout.rename_keys([key], ends).values(), tensor))
    return converted
