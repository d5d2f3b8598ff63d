"""Families of models. A new one is a file here that holds `FAMILY`, and a row in models/layout.py of the same name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_trainer.models.bundle import Family


def family(name: str) -> Family:
    """The family of that name, as the rows of models/layout.py call it."""
    found: Family = import_module(f"{__name__}.{name}").FAMILY
    return found
