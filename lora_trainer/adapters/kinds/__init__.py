"""The arithmetic of each network kind, one file each, found by its name; config/choices/networks.py has what is known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, cast

from lora_trainer.config.choices.networks import NETWORK_KINDS
from lora_trainer.errors import TrainerError

if TYPE_CHECKING:
    from torch import Tensor

    from lora_trainer.adapters.kinds.base import Kind


@cache
def kind_named(name: str) -> Kind:
    """The arithmetic of one kind. Raises TrainerError for an unknown name."""
    if name not in NETWORK_KINDS:
        raise TrainerError(
            "there is no network kind called {name}.", name=name, fix="Choose one of {known}.", known=", ".join(NETWORK_KINDS)
        )
    return cast("Kind", import_module(f"{__name__}.{name}").KIND)


def kind_of(tensors: Mapping[str, Tensor]) -> Kind | None:
    """The kind of a module's tensors by their suffixes in a file; None where they are of no kind, or incomplete."""
    suffixes = frozenset(tensors) - {"alpha"}
    return next((kind_named(name) for name, spec in NETWORK_KINDS.items() if spec.owns(suffixes)), None)
