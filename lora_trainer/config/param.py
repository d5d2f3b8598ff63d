"""One declaration per option: type, default, label, help, bounds, choices and sd-scripts' name stand in the field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from typing_extensions import dataclass_transform


@attrs.frozen
class Option:
    """What is known of one option besides its type and default."""

    label: str
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    kohya: str = ""
    basic: bool = False
    kind: str = ""
    """How the tab shows it where the type does not say: folder, checkpoint, vae, prompt, prompts, name."""


def param(
    default: Any,
    label: str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    kohya: str = "",
    basic: bool = False,
    kind: str = "",
) -> Any:
    """A field with its description. `low`/`high` are allowed, `above` is not; `kohya` is sd-scripts' name where it differs."""
    option = Option(label, help, low, high, above, tuple(choices), kohya, basic, kind)
    if isinstance(default, (list, tuple)):
        values = tuple(default)
        return attrs.field(factory=lambda: values, metadata={"option": option})
    return attrs.field(default=default, metadata={"option": option})


def part(cls: type) -> Any:
    """A field that holds a whole section with its own defaults."""
    return attrs.field(factory=cls, metadata={"section": cls})


@dataclass_transform(frozen_default=True, field_specifiers=(param, part))
def section(cls: type) -> Any:
    """A frozen group of options."""
    return attrs.frozen(kw_only=True)(cls)


@attrs.frozen
class Declared:
    """An option in its place: dotted path, annotated type, default."""

    path: str
    type: Any
    default: Any
    option: Option


def declared(cls: type, prefix: str = "") -> Iterator[Declared]:
    """Every option of a section class, sections inside it included, in the order of declaration."""
    attrs.resolve_types(cls)
    for field in attrs.fields(cls):
        path = prefix + field.name
        if inner := field.metadata.get("section"):
            yield from declared(inner, path + ".")
        else:
            default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
            yield Declared(path, field.type, default, field.metadata["option"])
