"""Model families. A new one is a file here with `FAMILY`, and a row in models/layout.py of the same name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_trainer.models.bundle import Family


def family(name: str) -> Family:
    """The family of a row's name in models/layout.py."""
    module_family: Family = import_module(f"{__name__}.{name}").FAMILY
    return module_family
