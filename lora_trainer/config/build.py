"""From plain values to a TrainConfig and back. Everything that is wrong is told at once."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

import attrs
import cattrs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from lora_trainer.config.checks import check_together, check_value, nearest_option, options, problem, shown
from lora_trainer.config.param import Declared
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, Problem


def build(mapping: Mapping[str, Any]) -> TrainConfig:
    """The config of nested plain values; what is not named keeps its default. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for path, value in _leaves(_unwrapped(mapping), problems):
        option = options()[path]
        try:
            values[path] = converter().structure(_prepared(option, value), option.type)
        except _Unfit:
            problems.append(_wrong_type(option, value))
            continue
        problems.extend(check_value(option, values[path]))
    bad = {found.path for found in problems}
    config: TrainConfig = _assembled(TrainConfig, {path: value for path, value in values.items() if path not in bad})
    problems.extend(found for paths, found in check_together(config) if not bad.intersection(paths))
    if problems:
        raise ConfigError(problems)
    return config


def to_mapping(config: TrainConfig, *, changed_only: bool = False) -> dict[str, Any]:
    """The config as nested dicts, lists and plain values; with `changed_only` without what equals the default."""
    plain = _plain(config)
    return _difference(plain, _plain(TrainConfig())) if changed_only else plain  # type: ignore[call-arg]  # mypy takes no positional default for one


def apply_sets(mapping: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """The mapping with each "a.b=c" put in; c is read as a TOML value, else as text. Raises ConfigError for a word without "="."""
    found: dict[str, Any] = _copied(_unwrapped(mapping))
    for text in sets:
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ConfigError(
                [problem(text, "{text} is not of the form section.name=value.", "Write for example --set data.batch_size=2", text=text)]
            )
        *sections, name = path.split(".")
        place = found
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[name] = _value_of_set(path, value.strip())
    return found


def _value_of_set(path: str, text: str) -> Any:
    option = options().get(path)
    try:
        value = tomlkit.parse(f"value = {text}\n").unwrap()["value"]
    except (TOMLKitError, ValueError):
        return text
    wants_text = option is not None and option.type is str
    return text if wants_text and not isinstance(value, str) else value


# --- types ---------------------------------------------------------------------------------------------------------------------------


class _Unfit(ValueError):
    """The value is not of the type."""


@lru_cache(maxsize=1)
def converter() -> cattrs.Converter:
    """Structures one value by its annotation and never guesses: "false" is no bool, 2.7 no int, true no number."""
    made = cattrs.Converter(detailed_validation=False)
    made.register_structure_hook_func(lambda kind: get_origin(kind) in (Union, types.UnionType), _as_union)  # type: ignore[comparison-overlap]
    made.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _as_tuple)  # type: ignore[comparison-overlap]
    made.register_structure_hook(int, _as_int)
    made.register_structure_hook(bool, _as_bool)
    made.register_structure_hook(float, _as_float)
    made.register_structure_hook(str, _as_str)
    return made


def _as_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit
    return value


def _as_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Unfit
    return value


def _as_float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Unfit
    try:
        number = float(value)
    except OverflowError as error:
        raise _Unfit from error
    if not math.isfinite(number):
        raise _Unfit
    return number


def _as_str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit
    return value


def _as_union(value: Any, kind: Any) -> Any:
    for member in get_args(kind):
        if member is type(None):
            if value is None:
                return None
            continue
        try:
            return converter().structure(value, member)
        except _Unfit:
            continue
    raise _Unfit


def _as_tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    members = get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise _Unfit
    if members[-1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise _Unfit
    return tuple(converter().structure(part, member) for part, member in zip(value, members, strict=True))


def _prepared(option: Declared, value: Any) -> Any:
    """The forms that users bring from elsewhere: "512,768", one prompt without brackets, a choice in other letters."""
    if not isinstance(value, str):
        return value
    if option.option.kind == "size":
        numbers = [part.strip() for part in value.lower().replace("x", ",").split(",")]
        if all(number.isdecimal() for number in numbers) and len(numbers) in (1, 2):
            sides = [int(number) for number in numbers]
            return sides if len(sides) == 2 else sides[0]
    if get_origin(option.type) is tuple:
        return [value] if value.strip() else []
    if option.option.choices:
        return next((choice for choice in option.option.choices if choice.lower() == value.lower()), value)
    return value


def _wrong_type(option: Declared, value: Any) -> Problem:
    """What the option takes, in words."""
    wanted = get_args(option.type) or (option.type,)
    values: dict[str, Any] = {"value": shown(value), "default": shown(option.default)}
    if option.type is bool:
        template, fix = "must be true or false, not {value}.", "Write true or false, without quotes."
    elif option.option.kind == "size":
        template, fix = "must be a number of pixels, or width and height, not {value}.", "Write 512 or [512, 768]."
    elif option.option.kind == "steps":
        template, fix = 'must be a whole number of steps or a share such as "5%", not {value}.', 'Write for example 100 or "5%".'
    elif get_origin(option.type) is tuple:
        template, fix = "must be a list of texts, not {value}.", 'Write for example ["one", "two"].'
    elif float in wanted:
        template, fix = "must be a number, not {value}.", "Write a number without quotes."
    elif int in wanted:
        template, fix = "must be a whole number, not {value}.", "Write a whole number without quotes and without a point."
    else:
        template, fix = "must be text, not {value}.", 'Put it between quotes: "..."'
    return problem(option.path, template, fix, **values)


# --- places --------------------------------------------------------------------------------------------------------------------------


def _leaves(mapping: Mapping[str, Any], problems: list[Problem], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every known option in the mapping; unknown keys and misplaced values become problems."""
    sections = {path.partition(".")[0] for path in options() if "." in path}
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if path in options():
            yield path, value
        elif not prefix and key in sections:
            if isinstance(value, Mapping):
                yield from _leaves(value, problems, f"{key}.")
            else:
                problems.append(
                    problem(path, "is a section of settings, not a value.", "Write [{section}] and its settings below.", section=key)
                )
        else:
            problems.append(_unknown(path, value, sections))


def _unknown(path: str, value: Any, sections: Iterable[str]) -> Problem:
    if isinstance(value, Mapping) and "." not in path and (near := get_close_matches(path, list(sections), 1)):
        return problem(path, "there is no section called {name}.", "Did you mean [{near}]?", name=path, near=near[0])
    if near_path := nearest_option(path):
        return problem(path, "there is no setting of this name.", "Did you mean {near}?", near=near_path)
    return problem(path, "there is no setting of this name.", "Take it out: no setting is called like it.")


def _assembled(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    given: dict[str, Any] = {}
    for field in attrs.fields(cls):
        path = prefix + field.name
        if inner := field.metadata.get("section"):
            given[field.name] = _assembled(inner, values, f"{path}.")
        elif path in values:
            given[field.name] = values[path]
    return cls(**given)


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _difference(mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            if inner := _difference(value, defaults[key]):
                found[key] = inner
        elif value != defaults[key]:
            found[key] = value
    return found


def _unwrapped(mapping: Any) -> dict[str, Any]:
    plain: dict[str, Any] = mapping.unwrap() if hasattr(mapping, "unwrap") else dict(mapping)
    return plain


def _copied(value: Any) -> Any:
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, Mapping) else value
