"""Changes with reasons: how the wizard answers. It never edits a config, it proposes another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from lora_trainer.config.build import rebuilt, to_mapping
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import Message


@attrs.frozen
class Change:
    """The option at `path` gets `value`, `because`."""

    path: str
    value: Any
    because: Message


def apply_changes(config: TrainConfig, changes: Iterable[Change]) -> TrainConfig:
    """The config with all changes made, checked as a whole. Raises ConfigError."""
    mapping = to_mapping(config)
    for change in changes:
        _put(mapping, change.path, change.value)
    return rebuilt(config, mapping)


def value_at(config: TrainConfig, path: str) -> Any:
    """The value of a dotted path ("data.batch_size"). Raises AttributeError for an unknown one."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def with_value(config: TrainConfig, path: str, value: Any) -> TrainConfig:
    """The config with one option changed. Raises ConfigError."""
    mapping = to_mapping(config)
    _put(mapping, path, value)
    return rebuilt(config, mapping)


def _put(mapping: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
    mapping[name] = list(value) if isinstance(value, tuple) else value
