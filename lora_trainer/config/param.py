"""One declaration per option: the field holds type, default, label, help, bounds, choices and sd-scripts' name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from typing_extensions import dataclass_transform

SECRET = "secret"
"""The kind of an option whose value is never written or shown."""


@attrs.frozen
class Option:
    """Description of one option besides its type and default."""

    label: str
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    kohya: str = ""
    basic: bool = False
    kind: str = ""
    """How the tab shows it if the type is not enough: folder, checkpoint, vae, prompt, prompts, name,
    class (a choice, or the dotted name of a class), secret (never written or shown), hidden."""
    group: str = ""
    """The heading within its section under which the tab shows it; "" comes before the first heading."""
    when: tuple[Condition, ...] = ()
    """Conditions for the option to have an effect; the tab shows it only then."""
    labels: tuple[tuple[str, str], ...] = ()
    """(choice, its label) if the choice is not self-explanatory."""
    also: tuple[tuple[str, str], ...] = ()
    """(alias, choice)."""


@attrs.frozen
class Condition:
    """The option at `path` has one of these values; without values: it is not off, 0 or empty."""

    path: str
    values: tuple[Any, ...] = ()


def param(
    default: Any,
    label: str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | Mapping[str, str] = (),
    kohya: str = "",
    basic: bool = False,
    kind: str = "",
    group: str = "",
    when: Mapping[str, Sequence[Any]] | str = "",
    also: Mapping[str, str] | None = None,
) -> Any:
    """A field with its description. `low`/`high` are allowed, `above` is not; `kohya` is sd-scripts' name where it differs.

    `choices` as a mapping gives each a label ("": self-explanatory). `when` names options that decide whether this one has an effect:
    "min_snr_gamma" (it is on), or {"loss_type": ("huber", "smooth_l1")}; a name without a dot is in the same section.
    `also` maps aliases to choices.
    """
    conditions_by_path = {when: ()} if isinstance(when, str) and when else when or {}
    conditions = tuple(Condition(path, tuple(values)) for path, values in conditions_by_path.items())
    labels = tuple((choice, words) for choice, words in choices.items() if words) if isinstance(choices, Mapping) else ()
    option = Option(
        label, help, low, high, above, tuple(choices), kohya, basic, kind, group, conditions, labels, tuple((also or {}).items())
    )
    if isinstance(default, (list, tuple)):
        values = tuple(default)
        return attrs.field(factory=lambda: values, metadata={"option": option})
    return attrs.field(default=default, metadata={"option": option}, repr=kind != SECRET)


def part(cls: type) -> Any:
    """A field that holds a whole section with its own defaults."""
    return attrs.field(factory=cls, metadata={"section": cls})


@dataclass_transform(frozen_default=True, field_specifiers=(param, part))
def section(cls: type) -> Any:
    """A frozen group of options."""
    return attrs.frozen(kw_only=True)(cls)


@attrs.frozen
class DeclaredOption:
    """An option with its dotted path, annotated type and default."""

    path: str
    type: Any
    default: Any
    option: Option


def declared_options(cls: type, prefix: str = "") -> Iterator[DeclaredOption]:
    """Every option of a section class, nested sections included, in declaration order."""
    attrs.resolve_types(cls)
    for field in attrs.fields(cls):
        path = prefix + field.name
        if inner := field.metadata.get("section"):
            yield from declared_options(inner, path + ".")
        else:
            default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
            yield DeclaredOption(path, field.type, default, _with_full_paths(field.metadata["option"], prefix))


def _with_full_paths(option: Option, prefix: str) -> Option:
    """The option with full paths in its conditions."""
    if not option.when:
        return option
    conditions = [
        attrs.evolve(condition, path=condition.path if "." in condition.path else prefix + condition.path) for condition in option.when
    ]
    return attrs.evolve(option, when=tuple(conditions))
