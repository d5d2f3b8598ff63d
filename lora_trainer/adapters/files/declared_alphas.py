"""The scale of each layer of a network's file, whatever program wrote it: the one place that looks for it (no torch).

An alpha is looked for among the tensors, then in the header (diffusers since 2025, SimpleTuner), then in PEFT's adapter_config.json
beside the file. The last two are PEFT's LoraConfig: `lora_alpha`, `use_rslora`, and `alpha_pattern`, which has alphas of single layers
by the end of their paths. Where none of them says it, the scale is 1, as every program has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.config.choices.networks import DORA
from lora_trainer.errors import ModelError
from lora_trainer.files import open_regular
from lora_trainer.parsing import parse_json

if TYPE_CHECKING:
    from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer
    from lora_trainer.adapters.files.network_module import NetworkModule

HEADER_KEY = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"
CONFIG_LIMIT = 1 << 20
SECTIONS = {"unet": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}
"""Part -> prefix of its values in the header; a file of one model alone has them without a prefix."""
LARGEST = 1e30
WRAPPER = "base_model.model."
PEFT_FILE = "adapter_model"
ALPHA_KEYS = ("lora_alpha", "alpha")
"""PEFT's names for it: of LoRA, of LoHa and LoKr."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""PEFT's ways to begin (`init_lora_weights`) that change the model's own weights too."""
LITERAL = re.compile(r"\^?(\.\*\\?\.)?[A-Za-z0-9_.\\]+\$?")
FIX = "Save it again with the program that it is from, with its alphas as tensors."


@attrs.frozen
class DeclaredAlphas:
    """Layer -> alpha, as sd-scripts means it (the scale is alpha / rank), and where that is written ("": nowhere)."""

    alphas: Mapping[str, float] = attrs.field(factory=dict)
    source: str = ""
    missing: tuple[str, ...] = ()
    """Layers with a rank whose alpha is written nowhere: their scale is 1."""
    factors: Mapping[str, float] = attrs.field(factory=dict)
    """Layer -> scale of PEFT's LoKr of whole matrices, which have no alpha in other programs."""

    @property
    def has_scales(self) -> bool:
        """Whether anything is written outside of the tensors."""
        return bool(self.alphas or self.factors)


NOTHING_DECLARED = DeclaredAlphas()


def declared_alphas(
    path: Path, metadata: Mapping[str, str], modules: Mapping[str, NetworkModule], layers: Mapping[str, CheckpointLayer]
) -> DeclaredAlphas:
    """The alphas of the layers that have no alpha of their own. Raises ModelError where they are written, and cannot be read or used."""
    without = {name: module for name, module in modules.items() if "alpha" not in module.keys and module.is_supported}
    known = {name: module for name, module in without.items() if name in layers}
    if not known:
        return DeclaredAlphas(missing=_ranked(without))
    sections, source = _sections(path, metadata, known)
    alphas, factors = {}, {}
    for name, module in known.items():
        values, layer = sections.get(layers[name].part, {}), layers[name].path
        _refuse_other_weights(path, source, values, name, module)
        alpha = _alpha(path, source, values, layer)
        if alpha is None:
            continue
        if module.rank:
            alphas[name] = alpha * math.sqrt(module.rank) if values.get("use_rslora") is True else alpha
        elif module.kind == "lokr" and (rank := _of_layer(path, source, values, "rank_pattern", layer, values.get("r"))) not in (0, alpha):
            factors[name] = alpha / _number(path, source, rank)
    missing = tuple(name for name in _ranked(without) if name not in alphas)
    return DeclaredAlphas(alphas, source if alphas or factors else "", missing, factors)


def _ranked(modules: Mapping[str, NetworkModule]) -> tuple[str, ...]:
    return tuple(name for name, module in modules.items() if module.rank)


def _sections(path: Path, metadata: Mapping[str, str], modules: Mapping[str, NetworkModule]) -> tuple[dict[str, dict[str, Any]], str]:
    """Part -> PEFT's values for it, and where they are written."""
    if HEADER_KEY in metadata:
        values = _parse(path, metadata[HEADER_KEY], HEADER_KEY)
        if any(key.startswith(tuple(SECTIONS.values())) for key in values):
            return {part: _section(values, prefix) for part, prefix in SECTIONS.items()}, HEADER_KEY
        return dict.fromkeys(SECTIONS, values), HEADER_KEY
    if path.name.startswith(PEFT_FILE) or any(key.startswith(WRAPPER) for module in modules.values() for key in module.keys.values()):
        return dict.fromkeys(SECTIONS, _read_config(path)), CONFIG_FILE
    return {}, ""


def _section(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _refuse_other_weights(path: Path, source: str, values: Mapping[str, Any], name: str, module: NetworkModule) -> None:
    """Raises ModelError where the values say that the tensors of a layer are not the whole of what it adds."""
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ModelError(
            "{path} belongs to changed weights of the model: {source} says that it began with {start}.",
            path=str(path),
            source=source,
            start=start,
            fix="Save it with PEFT's path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it.",
        )
    if values.get("use_dora") is True and module.kind == "lora" and DORA not in module.keys:
        raise ModelError(
            "{path} is incomplete: {source} says that it is DoRA, and {name} has no magnitude.",
            path=str(path),
            source=source,
            name=name,
            fix="Save it again with the program that it is from.",
        )


def _read_config(path: Path) -> dict[str, Any]:
    config = path.parent / CONFIG_FILE
    try:
        if not config.is_file():
            return {}
        with open_regular(config) as file:
            content = file.read(CONFIG_LIMIT + 1)
    except OSError as error:
        raise _unreadable(path, CONFIG_FILE) from error
    if len(content) > CONFIG_LIMIT:
        raise _unreadable(path, CONFIG_FILE)
    return _parse(path, content.decode("utf-8", "replace"), CONFIG_FILE)


def _parse(path: Path, text: str, source: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise _unreadable(path, source) from error
    if not isinstance(values, dict):
        raise _unreadable(path, source)
    return values


def _unreadable(path: Path, source: str) -> ModelError:
    return ModelError("{path}: its alphas are in {source}, which cannot be read.", path=str(path), source=source, fix=FIX)


def _alpha(path: Path, source: str, values: Mapping[str, Any], layer: str) -> float | None:
    """The alpha of one layer; None where there is none for its part."""
    usual = next((values[key] for key in ALPHA_KEYS if key in values), None)
    alpha = _of_layer(path, source, values, "alpha_pattern", layer, usual)
    return None if alpha is None else _number(path, source, alpha)


def _number(path: Path, source: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise ModelError("{path}: {value} in {source} is not an alpha.", path=str(path), value=str(value), source=source, fix=FIX)
    return float(value)


def _of_layer(path: Path, source: str, values: Mapping[str, Any], key: str, layer: str, usual: Any) -> Any:
    """The value of the first of PEFT's patterns under `key` that matches a layer; else the usual one."""
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict):
        raise _unreadable(path, source)
    return next((value for pattern, value in patterns.items() if _matches(path, pattern, layer)), usual)


def _matches(path: Path, pattern: str, layer: str) -> bool:
    """Whether a layer's path ends with PEFT's pattern. Only names are read, no other regular expressions: they may never end."""
    if not LITERAL.fullmatch(pattern):
        raise ModelError("{path}: the pattern {pattern} for alphas is not a layer's name.", path=str(path), pattern=pattern, fix=FIX)
    name = pattern.removesuffix("$").replace("\\", "")
    if name.startswith("^") and not name.startswith("^.*"):
        return layer == name[1:]
    name = name.removeprefix("^").removeprefix(".*").lstrip(".")
    return layer == name or layer.endswith(f".{name}")
