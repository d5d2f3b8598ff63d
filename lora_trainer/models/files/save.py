"""Back to a checkpoint: modules' tensors under the names that hosts read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.models import layout
from lora_trainer.models.files import tensor_file

LOGIT_SCALE = math.log(100.0)
"""What CLIP's training ends with; nothing here reads it."""


def checkpoint(parts: Mapping[str, Mapping[str, Tensor]], family: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint in LDM's, SGM's and open_clip's names, of parts in diffusers' and transformers' ("unet", "vae", "text" ...).

    Only what those layouts pack together or turn round is copied. Stable Diffusion 2's encoder lacks its unread last layer here:
    `whole` adds it.
    """
    prefixes = layout.part_prefixes(family)
    return {
        f"{prefixes[part]}{name}": tensor
        for part, state in parts.items()
        for name, tensor in host_names(part, state, open_clip=layout.is_open_clip(prefixes[part])).items()
    }


def whole(parts: Mapping[str, Mapping[str, Tensor]], family: str, original: Path) -> dict[str, Tensor]:
    """A complete checkpoint with these parts in place of those of the model that was trained on. Raises ModelError.

    Whatever else its file holds stays as it was: layers that nothing reads, CLIP's logit scale, marks of what it predicts; and every
    tensor keeps its number format there. A folder holds none of that: what hosts miss without it is made.
    """
    made = checkpoint(parts, family)
    if original.is_dir():
        return made | _unread(made, family)
    held = tensor_file.tensors(original)
    taken = _taken(held, parts, family)
    stays = {name: tensor for name, tensor in held.items() if name not in taken}
    return stays | {name: tensor.to(held[name].dtype) if name in held else tensor for name, tensor in made.items()}


class _Name(str):
    """A name that goes through the table of layouts as a tensor does."""

    __slots__ = ()

    def chunk(self, parts: int) -> list[_Name]:
        """Packed matrices are of one name."""
        return [self] * parts

    def t(self) -> _Name:
        """Turned."""
        return self


def _taken(held: Mapping[str, Tensor], parts: Mapping[str, object], family: str) -> set[str]:
    """Names in a checkpoint that become tensors of these parts' modules."""
    prefixes, found = layout.part_prefixes(family), layout.split_parts(held, family)
    return {
        f"{prefixes[part]}{name}"
        for part, names in found.items()
        if part in parts
        for name in layout.modules_names(part, {name: _Name(name) for name in names}, family).values()
    }


def _unread(made: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """What open_clip's encoders have and nothing reads: their last layers, as the one before them, projection and logit scale."""
    prefix = next((prefix for prefix in layout.row(family).text if prefix.endswith("model.")), "")
    if not prefix:
        return {}
    blocks, width = f"{prefix}transformer.resblocks.", made[f"{prefix}ln_final.weight"].shape[0]
    last = max(int(name[len(blocks) :].partition(".")[0]) for name in made if name.startswith(blocks))
    found = {
        name.replace(f"{blocks}{last}.", f"{blocks}{last + number}."): tensor.clone()
        for number in range(1, layout.row(family).unread_text_layers + 1)
        for name, tensor in made.items()
        if name.startswith(f"{blocks}{last}.")
    }
    likeness = made[f"{prefix}ln_final.weight"]
    projection = {} if f"{prefix}text_projection" in made else {f"{prefix}text_projection": torch.eye(width, dtype=likeness.dtype)}
    return projection | {f"{prefix}logit_scale": torch.tensor(LOGIT_SCALE)} | found


def host_names(part: str, state: Mapping[str, Tensor], *, open_clip: bool = False) -> dict[str, Tensor]:
    """The tensors of one part under a host's names, without the part's prefix."""
    if part.startswith("text"):
        return _open_clip(state) if open_clip else dict(state)
    if part == "unet":
        prefixes = layout.unet_prefixes(_levels(state))
    else:
        prefixes = layout.vae_prefixes(len({key.split(".")[2] for key in state if key.startswith("encoder.down_blocks.")}))
    found = {}
    for new, old in layout.renamed(state, layout.turned_round(prefixes)).items():
        convolution = part == "vae" and ".attn_1." in old and state[new].ndim == 2
        found[old] = state[new][:, :, None, None] if convolution else state[new]
    return found


def _levels(state: Mapping[str, Tensor]) -> list[bool]:
    count = len({key.split(".")[1] for key in state if key.startswith("down_blocks.")})
    return [any(key.startswith(f"down_blocks.{level}.attentions.") for key in state) for level in range(count)]


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder in open_clip's names: query, key and value as one matrix, the projection turned."""
    inner, ends = layout.turned_round(layout.OPEN_CLIP_LAYER), layout.turned_round(layout.OPEN_CLIP)
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in ends:
            found[ends[key]] = tensor.t().contiguous() if key == layout.OPEN_CLIP["text_projection"] else tensor
        elif ".layers." in key:
            number, _, rest = key.partition(".layers.")[2].partition(".")
            place, (name, kind) = f"transformer.resblocks.{number}", rest.split(".")[-2:]
            if name == layout.PACKED[0]:
                packed = [state[key.replace(layout.PACKED[0], other)] for other in layout.PACKED]
                found[f"{place}.attn.in_proj_{kind}"] = torch.cat(packed)
            elif name not in layout.PACKED:
                found.update({f"{place}.{old}": tensor for old in layout.renamed([rest], inner).values()})
        else:
            found.update(dict.fromkeys(layout.renamed([key], ends).values(), tensor))
    return found
