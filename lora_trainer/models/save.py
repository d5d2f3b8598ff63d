"""Back to a checkpoint: modules' tensors under the names that hosts read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_trainer.models import layout


def checkpoint(parts: Mapping[str, Mapping[str, Tensor]], family: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint in LDM's, SGM's and open_clip's names, of parts in diffusers' and transformers' ("unet", "vae", "text" ...).

    Only what those layouts pack together or turn round is copied. Stable Diffusion 2's encoder lacks its unread last layer here:
    whoever writes a whole checkpoint takes it from the one that was trained on.
    """
    prefixes = layout.part_prefixes(family)
    return {
        f"{prefixes[part]}{name}": tensor
        for part, state in parts.items()
        for name, tensor in host_names(part, state, open_clip=prefixes[part].endswith("model.")).items()
    }


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
