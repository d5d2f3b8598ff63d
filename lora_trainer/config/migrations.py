"""The version of a config's form: a file of an older one is brought to today's, and told so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.messages import Message, say

KEY = "version"
VERSION = 1
"""Of the form that this program writes. A config without a number was written by hand, or before there were numbers: it counts as 1."""

MOVED: Mapping[int, Mapping[str, str]] = {}
"""Version -> options that were renamed after it, old path -> new path ("" where the option is gone)."""


def migrated(
    mapping: Mapping[str, Any], moved: Mapping[int, Mapping[str, str]] | None = None, version: int | None = None
) -> tuple[dict[str, Any], tuple[Message, ...]]:
    """(the values in today's form, without the number; what was changed). A newer number is no error: unknown settings name themselves."""
    moved = MOVED if moved is None else moved
    current = VERSION if version is None else version
    values = _copied(mapping)
    written = values.pop(KEY, None)
    number = written if isinstance(written, int) and not isinstance(written, bool) and written > 0 else 1
    notes: list[Message] = []
    if number > current:
        notes.append(
            say(
                "A newer version of this trainer wrote these settings (form {written}, known: {known}).",
                written=number,
                known=current,
            )
        )
    for step in range(number, current):
        for old, new in moved.get(step, {}).items():
            if (note := _move(values, old, new)) is not None:
                notes.append(note)
    return values, tuple(notes)


def _move(values: dict[str, Any], old: str, new: str) -> Message | None:
    section, _, name = old.rpartition(".")
    place = values.get(section) if section else values
    if not isinstance(place, dict) or name not in place:
        return None
    value = place.pop(name)
    if not new:
        return say("The setting {old} is gone; its value {value} is not used.", old=old, value=str(value))
    target_section, _, target = new.rpartition(".")
    target_place = values.setdefault(target_section, {}) if target_section else values
    if isinstance(target_place, dict):
        target_place.setdefault(target, value)
    return say("The setting {old} is called {new} now.", old=old, new=new)


def _copied(value: Any) -> Any:
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, Mapping) else value
