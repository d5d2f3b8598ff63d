"""Reading the JSON files of a run's folder: values that are damaged are left out and named, and never raise."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.messages import Message, say

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether it is text."""
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_flag(value: Any) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def is_mapping(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def is_list(value: Any) -> bool:
    """Whether it is a list."""
    return isinstance(value, list)


def optional(check: Check) -> Check:
    """The check for a value that may be null."""
    return lambda value: value is None or check(value)


@attrs.frozen
class ListOf:
    """A list of JSON objects; `fields` must be there in each."""

    fields: Mapping[str, Check]

    def fits(self, entry: Any) -> bool:
        """Whether an entry is whole."""
        return isinstance(entry, dict) and all(name in entry and check(entry[name]) for name, check in self.fields.items())


Fields = Mapping[str, Check | ListOf]

INFO: Fields = {
    **dict.fromkeys(("name", "kind", "of", "work", "extras"), is_text),
    "created": is_number,
    "chosen": optional(is_mapping),
}
MANIFEST: Fields = {
    "name": is_text,
    "outcome": optional(is_text),
    "config_hash": is_text,
    "started": is_number,
    "ended": optional(is_number),
    "step": is_whole,
    "total_steps": is_whole,
    "epoch": is_whole,
    "epochs": is_whole,
    "files": ListOf({"path": is_text, "sha256": is_text, "epoch": is_whole, "step": is_whole, "final": is_flag}),
    "samples": ListOf({"path": is_text, "epoch": is_whole, "step": is_whole}),
    "validation": ListOf({"epoch": is_whole, "step": is_whole, "loss": optional(is_number)}),
    "best": optional(ListOf({"epoch": is_whole, "step": is_whole, "path": is_text, "validation": is_number}).fits),
    "step_seconds": optional(is_number),
    "active_seconds": is_number,
}
PLAN: Fields = dict.fromkeys(("images", "steps_per_epoch", "epochs", "total_steps", "files"), is_whole) | {
    "seconds": optional(is_number),
    "disk_mb": is_number,
    "rate_scale": is_number,
    "schedule": is_mapping,
    "effective": is_mapping,
    "memory": is_mapping,
    "buckets": is_list,
}
GRID: Fields = {
    "cells": ListOf({"epoch": is_whole, "weight": is_number, "image": is_text}),
    "best": optional(ListOf({"epoch": is_whole, "weight": is_number}).fits),
}


def read_object(path: Path) -> tuple[dict[str, Any], Message | None]:
    """The JSON object in a file, and what is wrong with the file; {} and None if there is no file."""
    try:
        if not path.is_file():  # a pipe would never answer
            return {}, say("{file} is not a file.", file=path.name) if os.path.lexists(path) else None
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, say("{file} cannot be read ({reason}).", file=path.name, reason=error.strerror or str(error))
    except (ValueError, RecursionError):
        return {}, say("{file} is not JSON, or holds only a part of it.", file=path.name)
    if not isinstance(value, dict):
        return {}, say("{file} holds something other than a JSON object.", file=path.name)
    return value, None


def keep_intact(content: Mapping[str, Any], fields: Fields, file: str) -> tuple[dict[str, Any], list[Message]]:
    """The content without the values that are of another kind than `fields` says, and what was left out."""
    intact, damage = dict(content), []
    for name, check in fields.items():
        if name not in content:
            continue
        value = content[name]
        if not isinstance(check, ListOf):
            if not check(value):
                del intact[name]
                damage.append(say("{file}: the value of {key} is damaged.", file=file, key=name))
            continue
        entries = value if isinstance(value, list) else []
        intact[name] = [entry for entry in entries if check.fits(entry)]
        if not isinstance(value, list) or len(intact[name]) < len(entries):
            damage.append(say("{file}: the value of {key} is damaged.", file=file, key=name))
    return intact, damage
