"""Every option of a run with its label and help in one language, for forms generated from them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.choices.optimizers import OPTIMIZER_SPECS
from lora_trainer.config.live_settings import is_changeable
from lora_trainer.config.param import DeclaredOption, declared_options
from lora_trainer.config.schema import TrainConfig
from lora_trainer.install_command import install_command
from lora_trainer.messages import translate

SECTIONS = {
    "": "General",
    "model": "Model",
    "data": "Pictures",
    "network": "Network",
    "optimizer": "Learning",
    "schedule": "Learning rate schedule",
    "steps": "Length",
    "loss": "Loss",
    "memory": "Memory",
    "sample": "Previews",
    "validate": "Validation",
    "save": "Saving",
    "log": "Logs",
}


def option_sections(language: str) -> list[dict[str, Any]]:
    """[{"name", "label", "options": [...]}], sections and options in the order of declaration."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for option in declared_options(TrainConfig):
        sections.setdefault(option.path.rpartition(".")[0], []).append(_option_json(option, lambda text: translate(text, language)))
    return [
        {"name": name, "label": translate(SECTIONS.get(name, name.capitalize()), language), "options": entries}
        for name, entries in sections.items()
        if entries
    ]


def default_config(model: dict[str, Any]) -> dict[str, Any]:
    """The default config as nested plain values, with the loaded model's clip skip and native size."""
    config = to_mapping(build({}))
    if model.get("family") == "sd1" and model.get("clip_skip") in (1, 2):  # the others always read the same layer
        config["model"]["clip_skip"] = model["clip_skip"]
    if model.get("native_size"):
        config["data"]["resolution"] = model["native_size"]
    return config


def _option_json(option: DeclaredOption, tr: Callable[[str], str]) -> dict[str, Any]:
    spec = option.option
    return {
        "path": option.path,
        "label": tr(spec.label),
        "help": tr(spec.help),
        "type": _type_name(option),
        "optional": type(None) in get_args(option.type),
        "many": any(get_origin(kind) is tuple for kind in get_args(option.type)) and option.option.kind != "size",
        "default": list(option.default) if isinstance(option.default, tuple) else option.default,
        "low": spec.low,
        "high": spec.high,
        "above": spec.above,
        "choices": list(spec.choices),
        "kohya": spec.kohya,
        "basic": spec.basic,
        "kind": spec.kind,
        "live": is_changeable(option.path),
        "group": tr(spec.group) if spec.group else "",
        "when": [[need.path, list(need.values)] for need in spec.when],
        "labels": {choice: tr(words) for choice, words in spec.labels},
        "facts": _optimizer_facts() if option.path == "optimizer.type" else {},
        "about": _network_descriptions(tr) if option.path == "network.type" else {},
        "search": [spec.label, option.path, spec.kohya or option.path.rpartition(".")[2], translate(spec.label, "zh_CN")],
    }


def _optimizer_facts() -> dict[str, dict[str, Any]]:
    """Per optimizer: the usual learning rate, whether it finds its own, whether it is schedule-free, and a package that is missing."""
    return {
        known.name: {
            "hint": known.rate_range.hint,
            "finds": known.adaptive,
            "free": known.schedule_free,
            "missing": known.pip_name if known.package and find_spec(known.package) is None else "",
            "install": install_command(known.pip_name) if known.package else "",
        }
        for known in OPTIMIZER_SPECS
    }


def _network_descriptions(tr: Callable[[str], str]) -> dict[str, str]:
    """What each network type is, what it is good for and what it costs."""
    return {name: " ".join(map(tr, (row.help, row.good_for, row.cost))) for name, row in NETWORK_TYPES.items()}


def _type_name(option: DeclaredOption) -> str:
    if option.option.kind in ("size", "steps"):
        return option.option.kind
    if option.option.choices:
        return "choice"
    if get_origin(option.type) is tuple:
        return "list"
    kinds = get_args(option.type) if get_origin(option.type) in (Union, UnionType) else (option.type,)
    return str(kinds[0].__name__)
