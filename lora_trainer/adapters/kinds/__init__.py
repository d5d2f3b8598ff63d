"""One file for the arithmetic of each kind of addition, found by its name; config/choices/networks.py holds what is known without torch."""

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
    """The arithmetic of one kind. Raises TrainerError for a name that is none."""
    if name not in NETWORK_KINDS:
        raise TrainerError(
            "there is no network kind called {name}.", name=name, fix="Choose one of {known}.", known=", ".join(NETWORK_KINDS)
        )
    return cast("Kind", import_module(f"{__name__}.{name}").KIND)


def kind_of(tensors: Mapping[str, Tensor]) -> Kind | None:
    """The kind whose tensors these are (by suffix, as in a file); None where they are of none, or half of one."""
    return next((kind for kind in map(kind_named, NETWORK_KINDS) if kind.owns(frozenset(tensors) - {"alpha"})), None)


@cache
def known_suffixes() -> frozenset[str]:
    """All suffixes that tensors of any kind have in a file, without alpha."""
    return frozenset().union(*(kind_named(name).known for name in NETWORK_KINDS))
