"""Every option of a run with its words in one language, for forms that are drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.choices.optimizers import OPTIMIZER_NAMES
from lora_trainer.config.live_settings import changeable
from lora_trainer.config.param import Declared, declared
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import translate

SECTIONS = {
    "": "General",
    "model": "Model",
    "data": "Pictures",
    "network": "Network",
    "optimizer": "Learning",
    "schedule": "Course of the learning rate",
    "steps": "Length",
    "loss": "Loss",
    "memory": "Memory",
    "sample": "Previews",
    "validate": "Validation",
    "save": "Saving",
    "log": "Logs",
}


def options(language: str) -> list[dict[str, Any]]:
    """[{"name", "label", "options": [...]}], sections and options in the order of declaration."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for option in declared(TrainConfig):
        sections.setdefault(option.path.rpartition(".")[0], []).append(_option(option, lambda text: translate(text, language)))
    return [
        {"name": name, "label": translate(SECTIONS.get(name, name.capitalize()), language), "options": found}
        for name, found in sections.items()
        if found
    ]


def defaults(model: dict[str, Any]) -> dict[str, Any]:
    """A fresh config as nested plain values, with what the loaded model says: clip skip and training size."""
    plain = to_mapping(build({}))
    if model.get("clip_skip") in (1, 2):
        plain["model"]["clip_skip"] = model["clip_skip"]
    if model.get("native_size"):
        plain["data"]["resolution"] = model["native_size"]
    return plain


def _option(option: Declared, translated: Callable[[str], str]) -> dict[str, Any]:
    known = option.option
    return {
        "path": option.path,
        "label": translated(known.label),
        "help": translated(known.help),
        "type": _type(option),
        "optional": type(None) in get_args(option.type),
        "many": any(get_origin(kind) is tuple for kind in get_args(option.type)) and option.option.kind != "size",
        "default": list(option.default) if isinstance(option.default, tuple) else option.default,
        "low": known.low,
        "high": known.high,
        "above": known.above,
        "choices": list(known.choices),
        "kohya": known.kohya,
        "basic": known.basic,
        "kind": known.kind,
        "live": changeable(option.path),
        "group": translated(known.group) if known.group else "",
        "when": [[need.path, list(need.values)] for need in known.when],
        "labels": {choice: translated(words) for choice, words in known.labels},
        "facts": _optimizers() if option.path == "optimizer.type" else {},
        "about": _networks(translated) if option.path == "network.type" else {},
        "search": [known.label, option.path, known.kohya or option.path.rpartition(".")[2], translate(known.label, "zh_CN")],
    }


def _optimizers() -> dict[str, dict[str, Any]]:
    """What to know before choosing: the usual rate, whether it finds its own, whether it averages, and the package that is missing here."""
    return {
        known.name: {
            "hint": known.family.hint,
            "finds": known.finds,
            "free": known.free,
            "missing": known.pip if known.package and find_spec(known.package) is None else "",
        }
        for known in OPTIMIZER_NAMES
    }


def _networks(translated: Callable[[str], str]) -> dict[str, str]:
    """What each type is, what it is good for and what it costs."""
    return {name: " ".join(map(translated, (row.help, row.good_for, row.cost))) for name, row in NETWORK_TYPES.items()}


def _type(option: Declared) -> str:
    if option.option.kind in ("size", "steps"):
        return option.option.kind
    if option.option.choices:
        return "choice"
    if get_origin(option.type) is tuple:
        return "list"
    kinds = get_args(option.type) if get_origin(option.type) in (Union, UnionType) else (option.type,)
    return str(kinds[0].__name__)
