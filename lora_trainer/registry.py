"""One table per kind of choice: names, labels and required packages are known without importing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import attrs

from lora_trainer.errors import MissingPackage, TrainerError
from lora_trainer.install_command import install_command

Builder = TypeVar("Builder", bound=Callable[..., Any])


@attrs.frozen
class Choice(Generic[Builder]):
    """One registered choice: `build` makes it, `requires` is the package it needs, `facts` are for UI and wizard."""

    name: str
    label: str
    build: Builder
    requires: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def available(self) -> bool:
        """Whether the required package can be imported."""
        return not self.requires or find_spec(self.requires) is not None


class Registry(Generic[Builder]):
    """Choices of one kind by name; lookups ignore case."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._choices: dict[str, Choice[Builder]] = {}

    def add(self, name: str, label: str, *, requires: str = "", **facts: Any) -> Callable[[Builder], Builder]:
        """Decorator: registers the builder under `name`."""

        def register(build: Builder) -> Builder:
            self._choices[name.lower()] = Choice(name, label, build, requires, facts)
            return build

        return register

    def __getitem__(self, name: str) -> Choice[Builder]:
        """The choice of that name. Raises TrainerError with the nearest name, MissingPackage if its package is not installed."""
        choice = self._choices.get(name.lower())
        if choice is None:
            nearest = get_close_matches(name.lower(), self._choices, 1) or list(self._choices)[:1]
            raise TrainerError(
                "there is no {kind} called {name}.",
                kind=self.kind,
                name=name,
                near=self._choices[nearest[0]].name,
                fix="Did you mean {near}?",
            )
        if not choice.available:
            raise MissingPackage(
                "{name} needs the package {package}.",
                name=choice.name,
                package=choice.requires,
                command=install_command(choice.requires.replace("_", "-")),
                fix="Install it: {command}",
            )
        return choice

    def __iter__(self) -> Iterator[Choice[Builder]]:
        return iter(self._choices.values())

    def names(self) -> tuple[str, ...]:
        """All names, in registration order."""
        return tuple(choice.name for choice in self._choices.values())
