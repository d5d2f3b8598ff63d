"""Conversion of other programs' values to the type of an option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from lora_trainer.config.param import DeclaredOption


def is_empty(value: Any) -> bool:
    """Whether the value is empty: null, no text, no entries."""
    return value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip())


def convert(value: Any, option: DeclaredOption) -> Any:
    """The value in the option's type if only its form differs ("64", 64.0, "1e-4", "True"); else unchanged."""
    kinds = get_args(option.type) or (option.type,)
    if get_origin(option.type) is tuple:
        return texts_of(value) if isinstance(value, list) else value
    if isinstance(value, list) and str in kinds:
        return " ".join(map(str, texts_of(value)))
    if isinstance(value, str) and str not in kinds and option.option.kind != "size":
        value = _parse(value.strip(), kinds)
    if isinstance(value, float) and float not in kinds and value.is_integer():
        return int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and kinds == (bool,) and value in (0, 1):
        return bool(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and kinds == (str,):
        return str(value)
    return value


def texts_of(values: list[Any]) -> list[Any]:
    """The members as texts, null left out; lists and objects stay as they are, and our checks refuse them."""
    return [value if isinstance(value, (list, dict)) else str(value) for value in values if value is not None]


def to_number(value: Any) -> float:
    """The value as a number, which may be written as text; 0 if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _parse(text: str, kinds: tuple[Any, ...]) -> Any:
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested tables."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
