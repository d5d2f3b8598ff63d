"""Keys of the network under the names of sd-scripts, LyCORIS and the programs around them; a list of arguments is a key of several."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.importing.learning import LORAPLUS, Options, Read, Take
from lora_trainer.config.importing.reasons import CALCULATED, CONV, EMPTY, OFF, OTHER_NETWORK, UNKNOWN
from lora_trainer.config.importing.values import brought, is_empty, number
from lora_trainer.config.schema.network import PRESETS
from lora_trainer.messages import Message, say

LYCORIS_MODULE = "lycoris.kohya"
MODULES = {
    "networks.lora": "lora",
    "networks.dylora": "dylora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
    "Kohya LoCon": "lora",
    "LoCon": "locon",
    **{f"LyCORIS/{name}": name.lower() for name in ("LoCon", "LoHa", "LoKr", "DyLoRA")},
    "LyCORIS/Diag-OFT": "oft",
    "LyCORIS/Native Fine-Tuning": "full",
}
"""Modules, and the types of the kohya_ss window -> our types."""
ALGORITHMS = {
    **{name: name for name in ("lora", "locon", "loha", "lokr", "dylora", "full")},
    "diag-oft": "oft",
}
PLAIN = ("networks.lora", "lora", "Standard")
OWN_NAMES = {
    "preset": "preset",
    "LyCORIS_preset": "preset",
    "dropout": "dropout",
    "use_cp": "use_tucker",
    "lokr_factor": "factor",
    "block_size": "unit",
    "dylora_unit": "unit",
    "constrain": "constraint",
    "rs_lora": "rs_lora",
    **{name: name for name in ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "use_tucker", "factor", "decompose_both")},
    **{name: name for name in ("full_matrix", "dora_wd", "train_norm", "constraint", "rescaled", "unit")},
    **{name: name for name in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "block_lr_zero_threshold")},
    **{name: name for name in ("down_lr_weight", "mid_lr_weight", "up_lr_weight")},
    "exclude_patterns": "exclude",
    **{name: name for name in ("include", "exclude", "text_encoder_dim", "text_encoder_alpha", "initialization")},
}
"""What an argument is called there -> the option of [network]."""
IGNORED: dict[str, Message] = {
    "algo": OFF,
    "bypass_mode": CALCULATED,
    "rank_dropout_scale": OTHER_NETWORK,
    "use_scalar": OTHER_NETWORK,
    "unbalanced_factorization": OTHER_NETWORK,
    "train_on_input": OTHER_NETWORK,
    "weight_decompose": CALCULATED,
}
ARGUMENTS = ("network_args", "network_args_custom")


def words(value: Any) -> dict[str, str]:
    """`name=value` of a list, or of one line in which each may stand between quotes."""
    if isinstance(value, list):
        given = [str(part) for part in value]
    else:
        try:
            given = shlex.split(str(value))
        except ValueError:  # a quote without its end
            given = str(value).split()
    return {name.strip(): text.strip().strip("\"'") for name, _, text in (word.partition("=") for word in given) if name.strip()}


def arguments_of(given: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of the network of a whole file."""
    return {name: text for key in ARGUMENTS if not is_empty(given.get(key)) for name, text in words(given[key]).items()}


def type_of(given: Mapping[str, Any]) -> str | None:
    """Our type of the network that a file means; None where there is none."""
    module = str(given.get("network_module", PLAIN[0]))
    if module == LYCORIS_MODULE:
        return ALGORITHMS.get(arguments_of(given).get("algo", str(given.get("lycoris_algo") or "lora")).lower())
    return "lora" if module in PLAIN else MODULES.get(module)


def module(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """network_module, or the type in a window."""
    known = type_of(given)
    if known in options()["network.type"].option.choices:
        return [("network.type", known)]
    name = arguments_of(given).get("algo", given.get("lycoris_algo", value)) if value == LYCORIS_MODULE else value
    return say("The network {name} is not here yet: a plain LoRA takes its place.", name=name)


def algorithm(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lycoris_algo, which one program writes beside the module."""
    if given.get("network_module") != LYCORIS_MODULE:
        return CONV
    return module(LYCORIS_MODULE, given, read)


def arguments(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """network_args: what of them has an option here; `argument_notes` tells of the others."""
    found: Options = []
    for name, text in words(value).items():
        taken = _argument(name, text, given)
        found += taken if isinstance(taken, list) else []
    return found or (EMPTY if is_empty(value) or not words(value) else UNKNOWN)


def argument_notes(given: Mapping[str, Any]) -> Iterator[Message]:
    """What was not taken of the arguments, each with its reason."""
    for key in ARGUMENTS:
        for name, text in words(given[key]).items() if not is_empty(given.get(key)) else ():
            why = _argument(name, text, given)
            if isinstance(why, Message) and name != "algo":
                yield say("{key}: {name}={value} was not taken. {why}", key=key, name=name, value=text, why=why)


def _argument(name: str, text: str, given: Mapping[str, Any]) -> Options | Message:
    if name in LORAPLUS:
        return [(f"optimizer.{name}", number(text))]
    if name in ("wd_on_output", "wd_on_out"):
        return [("network.dora_axis", "out" if text.lower() == "true" else "in")]
    if name in OWN_NAMES:
        return option(name)(text, given, lambda file: None)
    why = IGNORED.get(name, UNKNOWN)
    return OFF if why is OTHER_NETWORK and text.lower() in ("false", "0", "none", "") else why


def option(name: str) -> Take:
    """An argument, or a key of its own, that is an option of the network under another name."""
    path = f"network.{OWN_NAMES[name]}"

    def take(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
        if isinstance(value, str) and value.lower() in ("none", ""):
            return EMPTY
        if name in ("LyCORIS_preset", "preset") and not _is_lycoris(given):
            return CONV
        if name in ("LyCORIS_preset", "preset") and value not in PRESETS:
            return say("The preset {name} is a file: choose the layers here.", name=value)
        if name == "conv_dim" and _is_lycoris(given) and not number(value):
            return OFF  # there 0 means the other rank
        if name == "conv_alpha" and not number(value):
            return OFF
        if name in _NOT_OF_PLAIN and type_of(given) == "lora" and given.get("network_module") == "networks.lora" and _is_key(name, given):
            return CONV
        if OWN_NAMES[name] in ("include", "exclude"):
            return [(path, _patterns(value))]
        if isinstance(value, list):
            return [(path, ",".join(str(part) for part in value))]
        return [(path, brought(value, options()[path]))]

    return take


def _patterns(value: Any) -> list[str]:
    """Patterns of a list, of a list written as JSON (as headers hold it), or a single one."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _is_lycoris(given: Mapping[str, Any]) -> bool:
    return str(given.get("network_module", "")).startswith((LYCORIS_MODULE, "LyCORIS/"))


def _is_key(name: str, given: Mapping[str, Any]) -> bool:
    """Whether it stands as a key of its own, which a plain LoRA of those programs does not read."""
    return name in given and name not in arguments_of(given)


_NOT_OF_PLAIN = ("conv_dim", "conv_alpha", "factor", "use_tucker", "use_cp", "dora_wd", "train_norm", "decompose_both", "full_matrix")


def base_files(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """base_weights: a list, or a line each."""
    files = [line.strip() for line in _lines(value) if line.strip()]
    return [("network.base_weights", files)] if files else EMPTY


def base_strengths(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """base_weights_multiplier: the missing ones are 1 there."""
    files = [line for line in _lines(given.get("base_weights")) if line.strip()]
    numbers = [number(line) for line in _lines(value) if str(line).strip()]
    if not files:
        return say("It counts only with {other}.", other="base_weights")
    return [("network.base_weights_multiplier", (numbers + [1.0] * len(files))[: len(files)])]


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else str(value).splitlines()


def network_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What sd-scripts and LyCORIS do by themselves with these keys, where it means something else here."""
    told = {**{key: str(value) for key, value in given.items() if not isinstance(value, (list, dict))}, **arguments_of(given)}
    found: dict[str, Any] = {}
    if _is_lycoris(given):
        found["network.preset"] = "full"
        if number(told.get("conv_dim")):
            found["network.conv_alpha"] = number(told.get("network_alpha")) or 1.0
    elif number(arguments_of(given).get("conv_dim")):
        found["network.conv_alpha"] = 1.0
    for ranks, alphas, alpha in (("block_dims", "block_alphas", "network_alpha"), ("conv_block_dims", "conv_block_alphas", "conv_alpha")):
        if text := arguments_of(given).get(ranks):
            found[f"network.{alphas}"] = ",".join([f"{number(told.get(alpha)) or 1.0:g}"] * (text.count(",") + 1))
    return found


NETWORK: dict[str, Take] = {
    "network_module": module,
    "lycoris_algo": algorithm,
    "network_args": arguments,
    "network_args_custom": arguments,
    "base_weights": base_files,
    "base_weights_multiplier": base_strengths,
    **{name: option(name) for name in OWN_NAMES},
}
