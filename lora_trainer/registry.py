"""One table per kind of choice: names, labels and needs are known without importing what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import attrs

from lora_trainer.errors import MissingPackage, TrainerError

Made = TypeVar("Made", bound=Callable[..., Any])


@attrs.frozen
class Choice(Generic[Made]):
    """One registered way: `make` builds it, `requires` is the package that it needs, `facts` what UI and wizard want to know."""

    name: str
    label: str
    make: Made
    requires: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def available(self) -> bool:
        """Whether the package that it needs can be imported here."""
        return not self.requires or find_spec(self.requires) is not None


class Registry(Generic[Made]):
    """Choices of one kind by name; lookups ignore case."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._choices: dict[str, Choice[Made]] = {}

    def add(self, name: str, label: str, *, requires: str = "", **facts: Any) -> Callable[[Made], Made]:
        """Decorator: registers the builder under `name`."""

        def register(make: Made) -> Made:
            self._choices[name.lower()] = Choice(name, label, make, requires, facts)
            return make

        return register

    def __getitem__(self, name: str) -> Choice[Made]:
        """The choice of that name. Raises TrainerError with the nearest name, MissingPackage when its package is absent."""
        choice = self._choices.get(name.lower())
        if choice is None:
            near = get_close_matches(name.lower(), self._choices, 1) or list(self._choices)[:1]
            raise TrainerError(
                "there is no {kind} called {name}.", kind=self.kind, name=name, near=self._choices[near[0]].name, fix="Did you mean {near}?"
            )
        if not choice.available:
            raise MissingPackage(
                "{name} needs the package {package}.", name=choice.name, package=choice.requires, fix="Install it: pip install {package}"
            )
        return choice

    def __iter__(self) -> Iterator[Choice[Made]]:
        return iter(self._choices.values())

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(choice.name for choice in self._choices.values())
