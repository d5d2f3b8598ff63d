"""Header fields of a network in sd-scripts' and LyCORIS' terms, by which hosts and tools recognise it (no torch)."""

from __future__ import annotations

import json
from pathlib import PureWindowsPath
from typing import Any

import attrs

from lora_trainer.adapters.layer_selection import resolve_preset
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES
from lora_trainer.config.choices.unet_blocks import parse_numbers
from lora_trainer.config.schema import NetworkConfig

DEFAULTS = NetworkConfig()
SD_SCRIPTS_MODULES = {"lora": "networks.lora", "dylora": "networks.dylora"}
LYCORIS_MODULE = "lycoris.kohya"
NOT_ARGUMENTS = (
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
"""Options with header fields of their own, or that only say where a run started from."""
LYCORIS_OPTIONS = ("use_tucker", "rs_lora", "dora_wd", "train_norm", "preset")
LYCORIS_NAMES = {"unit": "block_size"}


def network_fields(network: NetworkConfig) -> dict[str, Any]:
    """Module, arguments and dropout, as keys without `ss_`; rank and alpha are written by the network itself."""
    name = network_module(network)
    arguments = {_argument_name(option, name): _text(value) for option, value in _changed_options(network).items()}
    rank, alpha = _conv_rank_and_alpha(network)
    if name == LYCORIS_MODULE:
        conv = {"conv_dim": f"{rank}", "conv_alpha": f"{alpha}"} if rank and resolve_preset(network) in ("blocks", "full") else {}
        kind = NETWORK_KINDS[NETWORK_TYPES[network.type].kind]
        arguments = {
            "algo": kind.lycoris_algo,
            "preset": resolve_preset(network),
            **arguments,
            **conv,
        }
    elif resolve_preset(network) == "blocks":
        arguments = {**arguments, "conv_dim": f"{rank}", "conv_alpha": f"{alpha}"}
    fields = {
        "network_dropout": network.dropout,
        "scale_weight_norms": network.scale_weight_norms,
        "base_weights": [PureWindowsPath(file).name for file in network.base_weights],
    }
    return {"network_module": name, "network_args": arguments or None, **{key: value for key, value in fields.items() if value}}


def network_module(network: NetworkConfig) -> str:
    """The `network_module` that makes such a file in sd-scripts."""
    row = NETWORK_TYPES[network.type]
    is_lycoris = row.fixed or any(getattr(network, name) != getattr(DEFAULTS, name) for name in LYCORIS_OPTIONS)
    return LYCORIS_MODULE if is_lycoris else SD_SCRIPTS_MODULES.get(row.kind, LYCORIS_MODULE)


def network_metadata(network: NetworkConfig) -> dict[str, str]:
    """The header fields as strings, with `ss_`; unset ones are left out as in sd-scripts."""
    fields = network_fields(network)
    return {f"ss_{key}": json.dumps(value) if isinstance(value, (dict, list)) else str(value) for key, value in fields.items()}


def _changed_options(network: NetworkConfig) -> dict[str, Any]:
    """Options that differ from a plain LoRA's, including those that the network type sets."""
    values = attrs.asdict(network, filter=lambda field, value: field.name not in NOT_ARGUMENTS and value != getattr(DEFAULTS, field.name))
    options: dict[str, Any] = dict(values)
    for ranks, alphas in (("block_dims", "block_alphas"), ("conv_block_dims", "conv_block_alphas")):
        if options.get(ranks) and not options.get(alphas):  # in sd-scripts an empty list means `alpha` for every rank
            options[alphas] = ",".join(f"{network.alpha / network.dim * rank:g}" for rank in parse_numbers(options[ranks]))
    fixed = NETWORK_TYPES[network.type].fixed
    if fixed.get("dora"):
        options["dora_wd"] = True
    if fixed.get("rs_lora"):
        options["rs_lora"] = True
    if options.pop("dora_axis", "in") == "out":
        options["wd_on_output"] = True
    elif options.get("dora_wd"):
        options["wd_on_output"] = False
    return options


def _conv_rank_and_alpha(network: NetworkConfig) -> tuple[int, float]:
    rank = network.dim if network.conv_dim is None else network.conv_dim
    return rank, network.alpha / network.dim * rank if network.conv_alpha is None else network.conv_alpha


def _argument_name(option: str, module: str) -> str:
    return LYCORIS_NAMES.get(option, option) if module == LYCORIS_MODULE else option


def _text(value: Any) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)
