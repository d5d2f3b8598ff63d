"""Converts between sd-scripts' names, which every WebUI reads, and those of diffusers and PEFT; a round trip gives the same file.

The other two have no alpha: a layer's scale is multiplied into its up matrix, and the metadata keeps alpha and dtype for the way back.
diffusers takes one alpha for all layers of a part, its first one's rank: layers of a lower rank are padded with zeros to the highest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import frexp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_trainer.adapters.files import naming
from lora_trainer.adapters.files.checked_network import NetworkFile, open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, released_layers
from lora_trainer.adapters.network_file import ModuleState
from lora_trainer.errors import ModelError
from lora_trainer.models.files.safetensors_stream import TORCH_DTYPES
from lora_trainer.network_tools.saving import write_network
from lora_trainer.parsing import parse_json

ALPHAS_KEY = "lora_trainer.alphas"
"""Metadata key of a converted file: {layer: [alpha, alpha's dtype or "" where the file had none, dtype of up, rank]}."""


def convert(path: Path, out: Path, to: str) -> NetworkFile:
    """Writes a network under the names of `to`: "kohya", "diffusers" or "peft". Returns the file that was read.

    Raises ModelError for layers without a name there, and for kinds that the other naming does not support.
    """
    file = open_network(path)
    if _has_names_of(file, to) and not file.declared.has_scales:
        raise ModelError("{path} has these names already.", path=str(path), fix="Choose another --to.")
    states = read_modules(file)
    layers = released_layers(file.family)
    metadata = dict(file.metadata)
    if to == "kohya":
        alphas = _alphas(metadata.pop(ALPHAS_KEY, "{}"))
        state = {key: tensor for name, module in states.items() for key, tensor in _to_kohya(name, module, alphas.get(name)).items()}
    else:
        state, alphas = {}, _alphas(metadata.get(ALPHAS_KEY, "{}"))
        for name, module in states.items():
            _check_convertible(file, name, module, layers)
        highest = _highest_ranks(states, layers)
        for name, module in states.items():
            alphas.setdefault(name, _original_alpha(file, name, module))
            state |= _to_other_names(name, module, layers[name], to, highest[layers[name].part])
        metadata[ALPHAS_KEY] = json.dumps(alphas, separators=(",", ":"))
    write_network(out, state, metadata, "keep")
    return file


def _has_names_of(file: NetworkFile, to: str) -> bool:
    """Whether every key has the name that it would get."""
    layers = released_layers(file.family)
    keys = [
        (key, naming.rename_key(name, suffix, layers.get(name), to))
        for name, module in file.modules.items()
        for suffix, key in module.keys.items()
        if suffix != "alpha"
    ]
    return all(key == renamed for key, renamed in keys)


def _check_convertible(file: NetworkFile, name: str, module: ModuleState, layers: Mapping[str, CheckpointLayer]) -> None:
    if name not in layers:
        raise ModelError(
            "{name} is in no model of the family {family}.", name=name, family=file.family, fix="Check it with network verify."
        )
    if module.kind.name != "lora" or "lora_mid.weight" in module.tensors:
        raise ModelError(
            "{name} is of a kind ({kind}) that these names do not support.",
            name=name,
            kind=module.kind.name,
            fix="Resize the file first: it becomes a LoRA.",
        )
    magnitude = module.tensors.get("dora_scale")
    if magnitude is not None and magnitude.shape[0] != module.tensors["lora_up.weight"].shape[0]:
        raise ModelError(
            "{name} is DoRA over its inputs; diffusers and PEFT know only that over outputs.",
            name=name,
            fix="Merge it into its checkpoint, then extract a LoRA from the two.",
        )


def _original_alpha(file: NetworkFile, name: str, module: ModuleState) -> list[object]:
    entries = file.modules[name].entries
    dtype = entries["alpha"].dtype if "alpha" in entries else "F32" if module.alpha != module.rank else ""
    return [module.alpha, dtype, entries["lora_up.weight"].dtype, module.rank]


def _highest_ranks(states: Mapping[str, ModuleState], layers: Mapping[str, CheckpointLayer]) -> dict[str, int]:
    """Part -> the highest rank of its layers."""
    highest: dict[str, int] = {}
    for name, module in states.items():
        highest[layers[name].part] = max(module.rank, highest.get(layers[name].part, 0))
    return highest


def _to_other_names(name: str, module: ModuleState, layer: CheckpointLayer, to: str, rank: int) -> dict[str, Tensor]:
    up = module.tensors["lora_up.weight"]
    scaled = up.float() * module.scale
    exact = frexp(module.scale)[0] == 0.5 and torch.equal((up * module.scale).float(), scaled)  # powers of two round the smallest only
    tensors = {**module.tensors, "lora_up.weight": up * module.scale if exact else scaled}
    if module.rank < rank:
        tensors["lora_up.weight"] = _padded(tensors["lora_up.weight"], 1, rank)
        tensors["lora_down.weight"] = _padded(tensors["lora_down.weight"], 0, rank)
    if "dora_scale" in tensors:
        spatial = to == "peft" and tensors["lora_down.weight"].dim() == 4
        tensors["dora_scale"] = tensors["dora_scale"].reshape((1, -1, 1, 1) if spatial else (-1,))
    return {naming.rename_key(name, suffix, layer, to): tensor for suffix, tensor in tensors.items()}


def _padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    missing = [*tensor.shape]
    missing[dim] = size - tensor.shape[dim]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=dim)


def _without_padding(module: ModuleState, rank: int) -> dict[str, Tensor]:
    up, down = module.tensors["lora_up.weight"], module.tensors["lora_down.weight"]
    if up[:, rank:].any() or down[rank:].any():
        return dict(module.tensors)
    return {**module.tensors, "lora_up.weight": up[:, :rank].contiguous(), "lora_down.weight": down[:rank].contiguous()}


def _to_kohya(name: str, module: ModuleState, original: list[Any] | None) -> dict[str, Tensor]:
    tensors = dict(module.tensors)
    state: dict[str, Tensor] = {}
    if original is None:
        state[f"{name}.alpha"] = torch.tensor(module.alpha)
    else:
        alpha, alpha_dtype, up_dtype, *ranks = original
        tensors = _without_padding(module, int(ranks[0]) if ranks else module.rank)
        scale = float(alpha) / tensors["lora_down.weight"].shape[0]
        if scale:
            tensors["lora_up.weight"] = (tensors["lora_up.weight"].double() / scale).to(getattr(torch, TORCH_DTYPES[up_dtype]))
        if alpha_dtype:
            state[f"{name}.alpha"] = torch.tensor(float(alpha), dtype=getattr(torch, TORCH_DTYPES.get(alpha_dtype, "float32")))
    return state | {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def _alphas(text: str) -> dict[str, Any]:
    """The alphas in a file's metadata; without those that are damaged."""
    try:
        alphas = parse_json(text)
    except ValueError:
        return {}
    if not isinstance(alphas, dict):
        return {}
    return {name: original for name, original in alphas.items() if _is_original_alpha(original)}


def _is_original_alpha(value: Any) -> bool:
    """Whether it is [alpha, dtype of the alpha, dtype of the tensors] with the rank behind it; older files have none."""
    if not isinstance(value, list) or len(value) not in (3, 4) or any(type(rank) is not int or rank < 1 for rank in value[3:]):
        return False
    alpha, alpha_dtype, up_dtype, *_ = value
    return type(alpha) in (int, float) and isinstance(alpha_dtype, str) and isinstance(up_dtype, str) and up_dtype in TORCH_DTYPES
