"""Alphas that are no tensors: in the header (diffusers since 2025, SimpleTuner), or in PEFT's adapter_config.json (no torch).

Both are PEFT's LoraConfig: `lora_alpha`, `use_rslora`, and `alpha_pattern`, which has alphas of single layers by the end of their paths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.files import open_regular
from lora_trainer.parsing import parse_json

if TYPE_CHECKING:
    from lora_trainer.network_tools.checked_network import NetworkModule
    from lora_trainer.network_tools.layers import CheckpointLayer

HEADER_KEY = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"
CONFIG_LIMIT = 1 << 20
SECTIONS = {"unet": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}
"""Part -> prefix of its values in the header."""
WRAPPER = "base_model.model."
LITERAL = re.compile(r"\^?(\.\*\\?\.)?[A-Za-z0-9_.\\]+\$?")
FIX = "Save it again with the program that it is from, with its alphas as tensors."


@attrs.frozen
class DeclaredAlphas:
    """Layer -> alpha, as sd-scripts means it (the scale is alpha / rank), and where that is written ("": nowhere)."""

    alphas: Mapping[str, float] = attrs.field(factory=dict)
    source: str = ""


NOTHING_DECLARED = DeclaredAlphas()


def declared_alphas(
    path: Path, metadata: Mapping[str, str], modules: Mapping[str, NetworkModule], layers: Mapping[str, CheckpointLayer]
) -> DeclaredAlphas:
    """The alphas of the layers that have no alpha of their own. Raises ModelError where they are written, and cannot be read."""
    open_layers = {
        name: module
        for name, module in modules.items()
        if "alpha" not in module.keys and module.rank and name in layers and not _has_kohya_names(module)
    }
    if not open_layers:
        return DeclaredAlphas()
    if HEADER_KEY in metadata:
        values, source = _parse(path, metadata[HEADER_KEY], HEADER_KEY), HEADER_KEY
        sections = {part: _section(values, prefix) for part, prefix in SECTIONS.items()}
    elif any(key.startswith(WRAPPER) for module in open_layers.values() for key in module.keys.values()):
        values, source = _read_config(path), CONFIG_FILE
        sections = dict.fromkeys(SECTIONS, values)
    else:
        return DeclaredAlphas()
    alphas = {}
    for name, module in open_layers.items():
        layer = layers[name]
        alpha = _alpha(path, source, sections[layer.part], layer.path)
        if alpha is not None:
            alphas[name] = alpha * math.sqrt(module.rank) if sections[layer.part].get("use_rslora") is True else alpha
    return DeclaredAlphas(alphas, source if alphas else "")


def _has_kohya_names(module: NetworkModule) -> bool:
    """WebUIs read such a layer, and look for its alpha among the tensors only."""
    return all(key.startswith("lora_") for key in module.keys.values())


def _section(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


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
    alpha = values.get("lora_alpha", values.get("alpha"))
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _unreadable(path, source)
    for pattern, value in patterns.items():
        if _matches(path, pattern, layer):
            alpha = value
            break
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ModelError("{path}: {value} in {source} is not an alpha.", path=str(path), value=str(alpha), source=source, fix=FIX)
    return float(alpha)


def _matches(path: Path, pattern: str, layer: str) -> bool:
    """Whether a layer's path ends with PEFT's pattern. Only names are read, no other regular expressions: they may never end."""
    if not LITERAL.fullmatch(pattern):
        raise ModelError("{path}: the pattern {pattern} for alphas is not a layer's name.", path=str(path), pattern=pattern, fix=FIX)
    name = pattern.removesuffix("$").replace("\\", "")
    if name.startswith("^") and not name.startswith("^.*"):
        return layer == name[1:]
    name = name.removeprefix("^").removeprefix(".*").lstrip(".")
    return layer == name or layer.endswith(f".{name}")
