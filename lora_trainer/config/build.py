"""From plain values to a TrainConfig and back. All problems are reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import check_combinations, nearest_option, options, problem
from lora_trainer.config.param import SECRET
from lora_trainer.config.parse import number_with_comma, read_value
from lora_trainer.config.schema import SubsetConfig, TrainConfig
from lora_trainer.config.subsets import SUBSETS, check_tables, read_tables
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_toml


def build(mapping: Mapping[str, Any]) -> TrainConfig:
    """The config of nested plain values; options that are not named keep their defaults. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for path, value in _iter_options(_unwrap(mapping), problems):
        option = options()[path]
        if path == SUBSETS:
            values[path] = read_tables(value, problems)
        elif (parsed := read_value(option, value, problems)) is not None or value is None:
            values[path] = parsed
    invalid = {wrong.path for wrong in problems}
    config: TrainConfig = _assemble(TrainConfig, {path: value for path, value in values.items() if path not in invalid})
    problems.extend(conflict for paths, conflict in check_combinations(config) if not invalid.intersection(paths))
    problems.extend(check_tables(config, invalid))
    if problems:
        raise ConfigError(problems)
    return config


def comma_notes(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Message]]:
    """(option, note) of each number that is read although a comma follows it."""
    for path, value in _iter_options(_unwrap(mapping), []):
        if (number := number_with_comma(options()[path], value)) is not None:
            yield (
                path,
                say("{option} is read as {number}, without what follows the number in {value}.", option=path, number=number, value=value),
            )


def to_mapping(config: TrainConfig, *, changed_only: bool = False) -> dict[str, Any]:
    """The config as nested dicts, lists and plain values, without its secrets; with `changed_only`, without defaults."""
    plain = _plain(config)
    return _difference(plain, _plain(TrainConfig())) if changed_only else plain  # type: ignore[call-arg]  # mypy takes no positional default for one


def rebuild(config: TrainConfig, mapping: Mapping[str, Any]) -> TrainConfig:
    """The config of a mapping that was made from `config`, with the secrets of `config`. Raises ConfigError."""
    rebuilt: TrainConfig = _copy_secrets(build(mapping), config)
    return rebuilt


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The mapping with each override "a.b=c" applied; c is parsed as a TOML value, else taken as text.

    Raises ConfigError for an override without "=".
    """
    merged: dict[str, Any] = _copy(_unwrap(mapping))
    for text in overrides:
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ConfigError(
                [problem(text, "{text} is not of the form section.name=value.", "Write for example --set data.batch_size=2", text=text)]
            )
        *sections, name = path.split(".")
        table = merged
        for section in sections:
            if not isinstance(table.get(section), dict):
                table[section] = {}
            table = table[section]
        table[name] = _parse_override(path, value.strip())
    return merged


def _parse_override(path: str, text: str) -> Any:
    option = options().get(path)
    try:
        value = parse_toml(f"value = {text}\n")["value"]
    except ValueError:
        return text
    wants_text = option is not None and option.type is str
    return text if wants_text and not isinstance(value, str) else value


# --- nested mappings ----------------------------------------------------------------------------------------------------------------


def _iter_options(mapping: Mapping[str, Any], problems: list[Problem], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every known option in the mapping; unknown keys and misplaced values become problems."""
    sections = {path.partition(".")[0] for path in options() if "." in path}
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if path in options():
            yield path, value
        elif not prefix and key in sections:
            if isinstance(value, Mapping):
                yield from _iter_options(value, problems, f"{key}.")
            else:
                problems.append(
                    problem(path, "is a section of settings, not a value.", "Write [{section}] and its settings below.", section=key)
                )
        else:
            problems.append(_unknown_option(path, value, sections))


def _unknown_option(path: str, value: Any, sections: Iterable[str]) -> Problem:
    if isinstance(value, Mapping) and "." not in path and (near := get_close_matches(path, list(sections), 1)):
        return problem(path, "there is no section called {name}.", "Did you mean [{near}]?", name=path, near=near[0])
    if near_path := nearest_option(path):
        return problem(path, "there is no setting of this name.", "Did you mean {near}?", near=near_path)
    return problem(path, "there is no setting of this name.", "Take it out: no setting has a similar name.")


def _assemble(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    fields: dict[str, Any] = {}
    for field in attrs.fields(cls):
        path = prefix + field.name
        if inner := field.metadata.get("section"):
            fields[field.name] = _assemble(inner, values, f"{path}.")
        elif path in values:
            fields[field.name] = values[path]
    return cls(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, SubsetConfig):
        return {name: _plain(part) for name, part in value.values}
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value)) if not _is_secret(field)}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _is_secret(field: Any) -> bool:
    return "option" in field.metadata and field.metadata["option"].kind == SECRET


def _copy_secrets(config: Any, other: Any) -> Any:
    """The config with the secrets of `other`, in all sections."""
    secrets = {}
    for field in attrs.fields(type(config)):
        if _is_secret(field):
            secrets[field.name] = getattr(other, field.name)
        elif "section" in field.metadata:
            secrets[field.name] = _copy_secrets(getattr(config, field.name), getattr(other, field.name))
    return attrs.evolve(config, **secrets)


def _difference(mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            if changed_inside := _difference(value, defaults[key]):
                changed[key] = changed_inside
        elif value != defaults[key]:
            changed[key] = value
    return changed


def _unwrap(mapping: Any) -> dict[str, Any]:
    plain: dict[str, Any] = mapping.unwrap() if hasattr(mapping, "unwrap") else dict(mapping)
    return plain


def _copy(value: Any) -> Any:
    return {key: _copy(part) for key, part in value.items()} if isinstance(value, Mapping) else value
