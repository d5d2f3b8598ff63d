"""What a file's header says of its network: sd-scripts' and LyCORIS' own words, so that hosts and tools know what it is (no torch)."""

from __future__ import annotations

import json
from pathlib import PureWindowsPath
from typing import Any

import attrs

from lora_trainer.adapters.layer_selection import preset_of
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.choices.unet_blocks import numbers
from lora_trainer.config.schema import NetworkConfig

PLAIN = NetworkConfig()
SD_SCRIPTS = {"lora": "networks.lora", "dylora": "networks.dylora"}
LYCORIS = "lycoris.kohya"
ALGORITHMS = {"oft": "diag-oft"}
ELSEWHERE = (
    "base_weights_multiplier",
    "type",
    "dim",
    "alpha",
    "preset",
    "dropout",
    "scale_weight_norms",
    "network_weights",
    "dim_from_weights",
    "base_weights",
)
"""Options that have words of their own, or say where a run began."""
OF_LYCORIS = ("use_tucker", "rs_lora", "dora_wd", "train_norm", "preset")
THERE = {"unit": "block_size"}


def network_words(network: NetworkConfig) -> dict[str, Any]:
    """Keys without `ss_`: module, arguments, dropout; the rank and alpha are the network's own to tell."""
    name = module_of(network)
    arguments = {_there(option, name): _text(value) for option, value in _changed(network).items()}
    rank, alpha = _of_convolutions(network)
    if name == LYCORIS:
        wide = {"conv_dim": f"{rank}", "conv_alpha": f"{alpha}"} if rank and preset_of(network) in ("blocks", "full") else {}
        kind = NETWORK_TYPES[network.type].kind
        arguments = {"algo": ALGORITHMS.get(kind, "locon" if kind == "lora" else kind), "preset": preset_of(network), **arguments, **wide}
    elif preset_of(network) == "blocks":
        arguments = {**arguments, "conv_dim": f"{rank}", "conv_alpha": f"{alpha}"}
    used = {
        "network_dropout": network.dropout,
        "scale_weight_norms": network.scale_weight_norms,
        "base_weights": [PureWindowsPath(file).name for file in network.base_weights],
    }
    return {"network_module": name, "network_args": arguments or None, **{key: value for key, value in used.items() if value}}


def module_of(network: NetworkConfig) -> str:
    """The module that makes such a file elsewhere."""
    row = NETWORK_TYPES[network.type]
    further = row.fixed or any(getattr(network, name) != getattr(PLAIN, name) for name in OF_LYCORIS)
    return LYCORIS if further else SD_SCRIPTS.get(row.kind, LYCORIS)


def header_words(network: NetworkConfig) -> dict[str, str]:
    """As texts, with `ss_`; what is not set is left out where sd-scripts leaves it out."""
    words = network_words(network)
    return {f"ss_{key}": json.dumps(value) if isinstance(value, (dict, list)) else str(value) for key, value in words.items()}


def _changed(network: NetworkConfig) -> dict[str, Any]:
    """Options that differ from an ordinary LoRA's, with what a type makes of them by itself."""
    values = attrs.asdict(network, filter=lambda field, value: field.name not in ELSEWHERE and value != getattr(PLAIN, field.name))
    found: dict[str, Any] = dict(values)
    for ranks, alphas in (("block_dims", "block_alphas"), ("conv_block_dims", "conv_block_alphas")):
        if found.get(ranks) and not found.get(alphas):  # elsewhere an empty list means alpha, whatever the rank
            found[alphas] = ",".join(f"{network.alpha / network.dim * rank:g}" for rank in numbers(found[ranks]))
    fixed = NETWORK_TYPES[network.type].fixed
    if fixed.get("dora"):
        found["dora_wd"] = True
    if fixed.get("rs_lora"):
        found["rs_lora"] = True
    if found.pop("dora_axis", "in") == "out":
        found["wd_on_output"] = True
    elif found.get("dora_wd"):
        found["wd_on_output"] = False
    return found


def _of_convolutions(network: NetworkConfig) -> tuple[int, float]:
    rank = network.dim if network.conv_dim is None else network.conv_dim
    return rank, network.alpha / network.dim * rank if network.conv_alpha is None else network.conv_alpha


def _there(option: str, module: str) -> str:
    return THERE.get(option, option) if module == LYCORIS else option


def _text(value: Any) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)
