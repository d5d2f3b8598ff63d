"""Changes with reasons: what the wizard returns. A config is never edited, only replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from lora_trainer.config.build import rebuild, to_mapping
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import Message


@attrs.frozen
class Change:
    """Set the option at `path` to `value`, for `reason`."""

    path: str
    value: Any
    reason: Message


def apply_changes(config: TrainConfig, changes: Iterable[Change]) -> TrainConfig:
    """The config with all changes applied, checked as a whole. Raises ConfigError."""
    mapping = to_mapping(config)
    for change in changes:
        _set_value(mapping, change.path, change.value)
    return rebuild(config, mapping)


def value_at(config: TrainConfig, path: str) -> Any:
    """The value at a dotted path ("data.batch_size"). Raises AttributeError for an unknown path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def with_value(config: TrainConfig, path: str, value: Any) -> TrainConfig:
    """The config with one option changed. Raises ConfigError."""
    mapping = to_mapping(config)
    _set_value(mapping, path, value)
    return rebuild(config, mapping)


def _set_value(mapping: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
    mapping[name] = list(value) if isinstance(value, tuple) else value
