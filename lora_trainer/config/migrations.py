"""Format versions of configs: older files are migrated, with a note for the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.messages import Message, say

VERSION_KEY = "version"
VERSION = 1
"""The current format. A config without a version was written by hand, or before versions existed: it counts as 1."""

RENAMED: Mapping[int, Mapping[str, str]] = {}
"""Version -> options that were renamed after it, old path -> new path ("" if the option was removed)."""


def migrate(
    mapping: Mapping[str, Any], renamed: Mapping[int, Mapping[str, str]] | None = None, version: int | None = None
) -> tuple[dict[str, Any], tuple[Message, ...]]:
    """(values in the current format, without the version; notes). A newer version is no error: `build` reports unknown settings."""
    renamed = RENAMED if renamed is None else renamed
    current = VERSION if version is None else version
    values = _copy(mapping)
    written = values.pop(VERSION_KEY, None)
    written_version = written if isinstance(written, int) and not isinstance(written, bool) and written > 0 else 1
    notes: list[Message] = []
    if written_version > current:
        notes.append(
            say(
                "A newer version of this trainer wrote these settings (form {written}, known: {known}).",
                written=written_version,
                known=current,
            )
        )
    for step in range(written_version, current):
        for old, new in renamed.get(step, {}).items():
            if (note := _rename(values, old, new)) is not None:
                notes.append(note)
    return values, tuple(notes)


def _rename(values: dict[str, Any], old: str, new: str) -> Message | None:
    section, _, name = old.rpartition(".")
    table = values.get(section) if section else values
    if not isinstance(table, dict) or name not in table:
        return None
    value = table.pop(name)
    if not new:
        return say("The setting {old} is gone; its value {value} is not used.", old=old, value=str(value))
    target_section, _, target = new.rpartition(".")
    target_table = values.setdefault(target_section, {}) if target_section else values
    if isinstance(target_table, dict):
        target_table.setdefault(target, value)
    return say("The setting {old} is called {new} now.", old=old, new=new)


def _copy(value: Any) -> Any:
    return {key: _copy(part) for key, part in value.items()} if isinstance(value, Mapping) else value
