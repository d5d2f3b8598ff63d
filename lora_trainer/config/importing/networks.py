"""Translation of the network keys of sd-scripts, LyCORIS and their front ends; network_args is one key with several options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.importing.learning import LORAPLUS, Options, ReadText, Translate
from lora_trainer.config.importing.reasons import CALCULATED, CONV, EMPTY, LIKE_EMPTY, OFF, OTHER_NETWORK, UNKNOWN
from lora_trainer.config.importing.values import convert, is_empty, texts_of, to_number
from lora_trainer.config.schema.network import PRESETS
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_json

LYCORIS_MODULE = "lycoris.kohya"
EARLY_LOCON = "locon.locon_kohya"
"""LyCORIS' module when it was called LoCon."""


@attrs.frozen
class ModuleName:
    """A network's module, or its type in a window, with our type ("": none of ours is that), and who writes it since when."""

    name: str
    type: str
    programs: str


MODULE_NAMES = (
    ModuleName("networks.lora", "lora", "sd-scripts 2022-12-, lora-scripts 2023-02-"),
    ModuleName(EARLY_LOCON, "locon", "LyCORIS when it was called LoCon, 2023-02"),
    ModuleName(LYCORIS_MODULE, "", "LyCORIS 2023-03-; its argument algo has the type"),
    ModuleName("networks.dylora", "dylora", "sd-scripts 2023-04-"),
    ModuleName("networks.lora_fa", "", "sd-scripts 2023-12-: only the upper matrix is trained"),
    ModuleName("networks.oft", "", "sd-scripts 2023-12-: an OFT of its own"),
    ModuleName("networks.loha", "loha", "sd-scripts 2025-"),
    ModuleName("networks.lokr", "lokr", "sd-scripts 2025-"),
    ModuleName("Standard", "lora", "kohya_ss 2023-"),
    ModuleName("Kohya LoCon", "lora", "kohya_ss 2023-: networks.lora with conv_dim"),
    ModuleName("LoCon", "locon", "kohya_ss 2023-02"),
    ModuleName("Kohya DyLoRA", "dylora", "kohya_ss 2023-"),
    *(ModuleName(f"LyCORIS/{name}", name.lower(), "kohya_ss 2023-") for name in ("LoCon", "LoHa", "LoKr", "DyLoRA")),
    ModuleName("LyCORIS/Diag-OFT", "oft", "kohya_ss 2023-"),
    ModuleName("LyCORIS/Native Fine-Tuning", "full", "kohya_ss 2023-"),
    ModuleName("lora", "lora", "this trainer"),
)
MODULES: Mapping[str, str] = {row.name: row.type for row in MODULE_NAMES if row.type}
ALGORITHMS = {
    **{name: name for name in ("lora", "locon", "loha", "lokr", "dylora", "full")},
    "diag-oft": "oft",
}
SD_SCRIPTS_RANK = 4
"""The rank that sd-scripts and LyCORIS take where none is given."""
PLAIN = ("networks.lora", "lora", "Standard")
OPTION_NAMES = {
    "preset": "preset",
    "LyCORIS_preset": "preset",
    "dropout": "dropout",
    "use_cp": "use_tucker",
    "use_conv_cp": "use_tucker",
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
"""Argument name there -> our option of [network]."""
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


def parse_args(value: Any) -> dict[str, str]:
    """`name=value` of a list, or of one line in which each may be quoted, as a dict."""
    if isinstance(value, list):
        args = [str(part) for part in value if part is not None]
    else:
        try:
            args = shlex.split(str(value))
        except ValueError:  # an unclosed quote
            args = str(value).split()
    return {name.strip(): text.strip().strip("\"'") for name, _, text in (arg.partition("=") for arg in args) if name.strip()}


def network_args(settings: Mapping[str, Any]) -> dict[str, str]:
    """The network arguments of a file's settings."""
    return {name: text for key in ARGUMENTS if not is_empty(settings.get(key)) for name, text in parse_args(settings[key]).items()}


def network_type(settings: Mapping[str, Any]) -> str | None:
    """Our type of a file's network; None if it is not supported."""
    module = str(settings.get("network_module", PLAIN[0]))
    if module == LYCORIS_MODULE:
        return ALGORITHMS.get(network_args(settings).get("algo", str(settings.get("lycoris_algo") or "lora")).lower())
    return "lora" if module in PLAIN else MODULES.get(module)


def dim(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """network_dim. LyCORIS takes the whole matrix of each layer where the rank reaches half its size: 100000 means every layer."""
    path = "network.dim"
    if _means_whole_matrix(value, settings):
        return [("network.full_matrix", True), (path, int(options()[path].option.high or 1))]
    return [(path, convert(value, options()[path]))]


def _means_whole_matrix(value: Any, settings: Mapping[str, Any]) -> bool:
    return network_type(settings) == "lokr" and to_number(value) > (options()["network.dim"].option.high or 1)


def whole_matrix_notes(settings: Mapping[str, Any]) -> Iterator[Message]:
    """A note for each rank that is so large that it means the whole matrix."""
    ranks = {"network_dim": settings.get("network_dim"), "conv_dim": network_args(settings).get("conv_dim", settings.get("conv_dim"))}
    for name, value in ranks.items():
        if _means_whole_matrix(value, settings):
            yield say("{key} = {value}: LyCORIS does not limit the rank from there on; it trains the whole matrix.", key=name, value=value)


def alpha(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """network_alpha; in sd-scripts and LyCORIS 0 means the rank."""
    path = "network.alpha"
    if not to_number(value) and str(value).strip() in ("0", "0.0"):
        rank = to_number(settings.get("network_dim")) or SD_SCRIPTS_RANK
        return [(path, min(rank, float(options()["network.dim"].option.high or rank)))]
    return [(path, convert(value, options()[path]))]


def module(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """network_module, or the type in a front end."""
    kind = network_type(settings)
    if kind in options()["network.type"].option.choices:
        return [("network.type", kind)]
    name = network_args(settings).get("algo", settings.get("lycoris_algo", value)) if value == LYCORIS_MODULE else value
    return say("The network {name} is not supported yet: a plain LoRA takes its place.", name=name)


def algorithm(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lycoris_algo, which one program writes in addition to the module."""
    if settings.get("network_module") != LYCORIS_MODULE:
        return CONV
    return module(LYCORIS_MODULE, settings, read)


def arguments(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """network_args: those that have an option here; `argument_notes` reports the others."""
    options_found: Options = []
    for name, text in parse_args(value).items():
        translated = _argument(name, text, settings)
        options_found += translated if isinstance(translated, list) else []
    return options_found or (EMPTY if is_empty(value) or not parse_args(value) else UNKNOWN)


def argument_notes(settings: Mapping[str, Any]) -> Iterator[Message]:
    """A note for each network argument that was not taken, with the reason."""
    for key in ARGUMENTS:
        for name, text in parse_args(settings[key]).items() if not is_empty(settings.get(key)) else ():
            why = _argument(name, text, settings)
            if isinstance(why, Message) and name != "algo":
                yield say("{key}: {name}={value} was not taken. {why}", key=key, name=name, value=text, why=why)


def _argument(name: str, text: str, settings: Mapping[str, Any]) -> Options | Message:
    if name in LORAPLUS:
        return [(f"optimizer.{name}", to_number(text))]
    if name in ("wd_on_output", "wd_on_out"):
        return [("network.dora_axis", "out" if text.lower() == "true" else "in")]
    if name in OPTION_NAMES:
        return network_option(name)(text, settings, lambda file: None)
    why = IGNORED.get(name, UNKNOWN)
    return OFF if why is OTHER_NETWORK and text.lower() in ("false", "0", "none", "") else why


def network_option(name: str) -> Translate:
    """An argument, or a key of its own, that is one of our network options under another name."""
    path = f"network.{OPTION_NAMES[name]}"

    def take(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
        if isinstance(value, str) and value.lower() in ("none", ""):
            return EMPTY
        if name in ("LyCORIS_preset", "preset") and not _is_lycoris(settings):
            return CONV
        if name in ("LyCORIS_preset", "preset") and value not in PRESETS:
            return say("The preset {name} is a file: choose the layers here.", name=value)
        if name == "conv_dim" and _is_lycoris(settings) and not to_number(value):
            return LIKE_EMPTY  # in LyCORIS the other rank
        if name == "conv_alpha" and not to_number(value) and (_is_lycoris(settings) or network_type(settings) == "locon"):
            return LIKE_EMPTY
        is_off = str(value).lower() not in ("true", "1")
        if name == "full_matrix" and is_off and _means_whole_matrix(settings.get("network_dim"), settings):
            return say("{key} wins.", key="network_dim")
        if name == "conv_dim" and _means_whole_matrix(value, settings):
            return [(path, int(options()[path].option.high or 1))]
        if (
            name in _NOT_OF_PLAIN
            and network_type(settings) == "lora"
            and settings.get("network_module") == "networks.lora"
            and _is_key(name, settings)
        ):
            return CONV
        if OPTION_NAMES[name] in ("include", "exclude"):
            return [(path, _patterns(value))]
        if isinstance(value, list):
            return [(path, ",".join(map(str, texts_of(value))))]
        return [(path, convert(value, options()[path]))]

    return take


def _patterns(value: Any) -> list[str]:
    """Patterns from a list, from a JSON list (as in metadata), or a single one."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            value = parse_json(value)
    return texts_of(value) if isinstance(value, list) else [str(value)]


def _is_lycoris(settings: Mapping[str, Any]) -> bool:
    return str(settings.get("network_module", "")).startswith((LYCORIS_MODULE, "LyCORIS/"))


def _is_key(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether it is a key of its own, which a plain LoRA of those programs does not read."""
    return name in settings and name not in network_args(settings)


_NOT_OF_PLAIN = ("conv_dim", "conv_alpha", "factor", "use_tucker", "use_cp", "dora_wd", "train_norm", "decompose_both", "full_matrix")


def base_weights(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """base_weights: a list, or one per line."""
    files = [line.strip() for line in _lines(value) if line.strip()]
    return [("network.base_weights", files)] if files else EMPTY


def base_weights_multiplier(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """base_weights_multiplier: missing ones are 1, as in sd-scripts."""
    files = [line for line in _lines(settings.get("base_weights")) if line.strip()]
    numbers = [to_number(line) for line in _lines(value) if str(line).strip()]
    if not files:
        return say("It counts only with {other}.", other="base_weights")
    return [("network.base_weights_multiplier", (numbers + [1.0] * len(files))[: len(files)])]


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(line) for line in value if line is not None] if isinstance(value, list) else str(value).splitlines()


def network_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of sd-scripts and LyCORIS for these keys, where they differ from ours."""
    values = {**{key: str(value) for key, value in settings.items() if not isinstance(value, (list, dict))}, **network_args(settings)}
    defaults: dict[str, Any] = {}
    if str(settings.get("network_module")) == EARLY_LOCON:
        defaults["network.conv_alpha"] = to_number(values.get("network_alpha")) or 1.0
    elif _is_lycoris(settings):
        defaults["network.preset"] = "full"
        if values.get("dora_wd", "").lower() == "true" and not {"wd_on_output", "wd_on_out"} & values.keys():
            defaults["network.dora_axis"] = "out"
        if to_number(values.get("conv_dim")):
            defaults["network.conv_alpha"] = to_number(values.get("network_alpha")) or 1.0
    elif to_number(network_args(settings).get("conv_dim")):
        defaults["network.conv_alpha"] = 1.0
    for ranks, alphas, alpha in (("block_dims", "block_alphas", "network_alpha"), ("conv_block_dims", "conv_block_alphas", "conv_alpha")):
        if text := network_args(settings).get(ranks):
            defaults[f"network.{alphas}"] = ",".join([f"{to_number(values.get(alpha)) or 1.0:g}"] * (text.count(",") + 1))
    return defaults


NETWORK: dict[str, Translate] = {
    "network_dim": dim,
    "network_alpha": alpha,
    "network_module": module,
    "lycoris_algo": algorithm,
    "network_args": arguments,
    "network_args_custom": arguments,
    "base_weights": base_weights,
    "base_weights_multiplier": base_weights_multiplier,
    **{name: network_option(name) for name in OPTION_NAMES},
}
