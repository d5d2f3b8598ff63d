"""From plain values to a TrainConfig and back. Everything that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from lora_trainer.config.checks.option_checks import check_together, nearest_option, options, problem
from lora_trainer.config.param import SECRET
from lora_trainer.config.parse import read_value
from lora_trainer.config.schema import SubsetConfig, TrainConfig
from lora_trainer.config.subsets import SUBSETS, check_tables, read_tables
from lora_trainer.errors import ConfigError, Problem


def build(mapping: Mapping[str, Any]) -> TrainConfig:
    """The config of nested plain values; what is not named keeps its default. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for path, value in _leaves(_unwrapped(mapping), problems):
        option = options()[path]
        if path == SUBSETS:
            values[path] = read_tables(value, problems)
        elif (found := read_value(option, value, problems)) is not None or value is None:
            values[path] = found
    bad = {found.path for found in problems}
    config: TrainConfig = _assembled(TrainConfig, {path: value for path, value in values.items() if path not in bad})
    problems.extend(found for paths, found in check_together(config) if not bad.intersection(paths))
    problems.extend(check_tables(config, bad))
    if problems:
        raise ConfigError(problems)
    return config


def to_mapping(config: TrainConfig, *, changed_only: bool = False) -> dict[str, Any]:
    """The config as nested dicts, lists and plain values, without its secrets; with `changed_only` without what equals the default."""
    plain = _plain(config)
    return _difference(plain, _plain(TrainConfig())) if changed_only else plain  # type: ignore[call-arg]  # mypy takes no positional default for one


def rebuilt(config: TrainConfig, mapping: Mapping[str, Any]) -> TrainConfig:
    """The config of a mapping that was made of `config`, whose secrets it keeps. Raises ConfigError."""
    found: TrainConfig = _with_secrets(build(mapping), config)
    return found


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
    if isinstance(value, SubsetConfig):
        return {name: _plain(part) for name, part in value.given}
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value)) if not _is_secret(field)}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _is_secret(field: Any) -> bool:
    return "option" in field.metadata and field.metadata["option"].kind == SECRET


def _with_secrets(config: Any, other: Any) -> Any:
    """The config with the secrets of another one, in all its sections."""
    kept = {}
    for field in attrs.fields(type(config)):
        if _is_secret(field):
            kept[field.name] = getattr(other, field.name)
        elif "section" in field.metadata:
            kept[field.name] = _with_secrets(getattr(config, field.name), getattr(other, field.name))
    return attrs.evolve(config, **kept)


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
