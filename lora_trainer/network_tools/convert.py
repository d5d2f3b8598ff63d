"""Between sd-scripts' names, which every WebUI reads, and those of diffusers and PEFT; there and back a file is the same.

The other two keep no alpha: a layer's scale goes into its upper matrix, and the header remembers alpha and format for the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import frexp
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.adapters.network_file import ModuleState
from lora_trainer.errors import ModelError
from lora_trainer.network_tools import naming
from lora_trainer.network_tools.checked_network import NetworkFile, open_network, read_modules
from lora_trainer.network_tools.layers import Layer, stock_layers
from lora_trainer.network_tools.safetensors_stream import NAMES
from lora_trainer.network_tools.saving import write_network

MEMORY = "lora_trainer.alphas"
"""{layer: [alpha, whether the file had one, format of its upper matrix]}, where a file was renamed."""


def convert(path: Path, out: Path, to: str) -> NetworkFile:
    """Writes a network under the names of `to`: "kohya", "diffusers" or "peft". Returns what was read.

    Raises ModelError for layers that have no name there, and for kinds that the other format does not know.
    """
    file = open_network(path)
    if file.naming == to:
        raise ModelError("{path} has these names already.", path=str(path), fix="Choose another --to.")
    states = read_modules(file)
    layers = stock_layers(file.family)
    words = dict(file.words)
    if to == "kohya":
        memory = json.loads(words.pop(MEMORY, "{}"))
        state = {key: tensor for name, module in states.items() for key, tensor in _back(name, module, memory.get(name)).items()}
    else:
        state, memory = {}, json.loads(words.get(MEMORY, "{}"))
        for name, module in states.items():
            _check_known(file, name, module, layers)
            memory.setdefault(name, _remembered(file, name, module))
            state |= _there(name, module, layers[name], to)
        words[MEMORY] = json.dumps(memory, separators=(",", ":"))
    write_network(out, state, words, "keep")
    return file


def _check_known(file: NetworkFile, name: str, module: ModuleState, layers: Mapping[str, Layer]) -> None:
    if name not in layers:
        raise ModelError(
            "{name} is in no model of the family {family}.", name=name, family=file.family, fix="Check it with network verify."
        )
    if module.kind.name != "lora" or "lora_mid.weight" in module.tensors:
        raise ModelError(
            "{name} is of a kind ({kind}) that these names are not made for.",
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


def _remembered(file: NetworkFile, name: str, module: ModuleState) -> list[object]:
    entries = file.modules[name].entries
    return [module.alpha, entries["alpha"].dtype if "alpha" in entries else "", entries["lora_up.weight"].dtype]


def _there(name: str, module: ModuleState, layer: Layer, to: str) -> dict[str, Tensor]:
    up = module.tensors["lora_up.weight"]
    exact = frexp(module.scale)[0] == 0.5 or module.scale == 1.0  # by powers of two nothing is rounded
    tensors = {**module.tensors, "lora_up.weight": up * module.scale if exact else up.float() * module.scale}
    if "dora_scale" in tensors:
        tensors["dora_scale"] = tensors["dora_scale"].reshape(-1)
    return {naming.renamed(name, suffix, layer, to): tensor for suffix, tensor in tensors.items()}


def _back(name: str, module: ModuleState, remembered: list[str] | None) -> dict[str, Tensor]:
    tensors = dict(module.tensors)
    found: dict[str, Tensor] = {}
    if remembered is None:
        found[f"{name}.alpha"] = torch.tensor(module.alpha)
    else:
        alpha, form, up_form = float(remembered[0]), remembered[1], remembered[2]
        scale = alpha / module.rank
        tensors["lora_up.weight"] = (tensors["lora_up.weight"].double() / scale).to(getattr(torch, NAMES[up_form]))
        if form:
            found[f"{name}.alpha"] = torch.tensor(alpha, dtype=getattr(torch, NAMES[form]))
    return found | {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}
