"""Configs as TOML files. Comments in the user's file are kept when it is rewritten."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import tomlkit

from lora_trainer import parsing
from lora_trainer.config import migrations
from lora_trainer.config.build import apply_overrides, build, comma_notes, to_mapping
from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError
from lora_trainer.files import read_regular, write_atomically
from lora_trainer.messages import Message

INPUT_PATHS = (
    "data.train_data_dir",
    "data.reg_data_dir",
    "data.in_json",
    "data.dataset_config",
    "validate.data_dir",
    "model.pretrained_model_name_or_path",
    "model.vae",
    "sample.prompt_file",
    "network.network_weights",
    "network.base_weights",
)
SUBSET_INPUT_PATHS = ("image_dir", "metadata_file", "mask_dir")
MAX_BYTES = 8 << 20
MAX_LINE_SHOWN = 200
SECRET_LINE = re.compile(r"^(\S*token\s*=).*")
"""A line that may hold a secret."""
NUMBER_LINE = re.compile(r"^([ \t]*[\w.-]+[ \t]*=[ \t]*)([-+.\deE]+[ \t]*[,;]+)([ \t]*(?:#.*)?)$", re.MULTILINE)
"""A line whose number is followed by a comma."""
OUTPUT_PATHS = ("save.output_dir", "save.runs_dir", "log.logging_dir")


def read_config(path: Path, overrides: Iterable[str] = (), notify: Callable[[Message], object] = lambda note: None) -> TrainConfig:
    """The config of a TOML file with `overrides` ("a.b=c") applied. `notify` is called with each note of a migration of an older file.

    A relative input path that does not exist from the working directory but does relative to the TOML file is resolved there.
    Raises ConfigError that names the file, the line, or every wrong setting.
    """
    path = Path(path)
    values, notes = migrations.migrate(read_toml(path))
    for note in notes:
        notify(note)
    mapping = apply_overrides(values, overrides)
    for _, note in comma_notes(mapping):
        notify(note)
    return build(_resolve_paths(mapping, path.parent))


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file. Raises ConfigError that names the file and the line."""
    return parse_toml(_read_text(Path(path)), str(path))


def parse_toml(text: str, location: str) -> dict[str, Any]:
    """The plain values of TOML text. Raises ConfigError that names `location` and the line."""
    try:
        return _parse_toml(text)
    except ValueError as error:
        line = getattr(error, "line", 0)
        wrong_line = text.splitlines()[line - 1].strip() if 0 < line <= len(text.splitlines()) else ""
        fix = "Correct this line: {wrong}"
        if "\\" in wrong_line:
            fix = "Between double quotes a \\ begins an escape: use single quotes ('C:\\new\\train') or / instead of \\. The line: {wrong}"
        values = {"line": line, "why": str(error), "wrong": SECRET_LINE.sub(r"\1 …", wrong_line[:MAX_LINE_SHOWN])}
        if not line:
            wrong = problem(location, "is not valid TOML ({why}).", "Check the file.", **values)
        else:
            wrong = problem(location, "line {line} is not valid TOML ({why}).", fix, **values)
        raise ConfigError([wrong]) from error


def _parse_toml(text: str) -> dict[str, Any]:
    """The values of TOML text, in which a comma may follow a number (`learning_rate = 5e-5,`). Raises ValueError."""
    try:
        return parsing.parse_toml(text)
    except parsing.TooDeep:
        raise
    except ValueError:
        quoted = NUMBER_LINE.sub(r'\1"\2"\3', text)
        if quoted == text:
            raise
        return parsing.parse_toml(quoted)


def write_config(config: TrainConfig, path: Path, *, template: Path | None = None) -> None:
    """Writes the config; with `template`, that file's comments and order are kept and only differing values change. Raises TrainerError."""
    text = _merged_text(config, tomlkit.parse(_read_text(Path(template)))) if template else config_text(config)
    write_atomically(Path(path), text.encode("utf-8"))


def config_text(config: TrainConfig, *, changed_only: bool = False) -> str:
    """The config as TOML, with its format version first; options that are None are left out."""
    return (
        tomlkit.dumps({migrations.VERSION_KEY: migrations.VERSION, **_without_none(to_mapping(config, changed_only=changed_only))}).rstrip()
        + "\n"
    )


def _read_text(path: Path) -> str:
    location = str(path)
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError([problem(location, "there is no such file.", "Check the path of the config file.")]) from error
    except (IsADirectoryError, PermissionError) as error:
        if path.is_dir():
            raise ConfigError([problem(location, "is a folder, not a file.", "Give the path of a TOML file.")]) from error
        raise ConfigError(
            [problem(location, "may not be read.", "Change the permissions of the file, or copy it somewhere else.")]
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError([problem(location, "is not UTF-8 text.", "Save the file as UTF-8.")]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([problem(location, "cannot be read: {why}", "Check the path of the config file.", why=str(error))]) from error


def _resolve_paths(mapping: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The mapping with `~` expanded in every path, and input paths resolved relative to the config file's folder."""
    resolved = {key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
    for path in INPUT_PATHS + OUTPUT_PATHS:
        section, _, name = path.partition(".")
        text = resolved[section].get(name) if isinstance(resolved.get(section), dict) else None
        if isinstance(text, (str, list)):
            resolved[section][name] = map_text(text, partial(_resolve_path, folder=folder if path in INPUT_PATHS else None))
    tables = resolved["data"].get("subsets") if isinstance(resolved.get("data"), dict) else None
    if isinstance(tables, list):
        resolved["data"]["subsets"] = [_resolve_table_paths(table, folder) if isinstance(table, Mapping) else table for table in tables]
    return resolved


def map_text(value: Any, convert: Callable[[str], str]) -> Any:
    """`convert` applied to a text, or to each text of a list; anything else unchanged."""
    if isinstance(value, (list, tuple)):
        return [convert(item) if isinstance(item, str) else item for item in value]
    return convert(value) if isinstance(value, str) else value


def _resolve_path(text: str, folder: Path | None) -> str:
    return resolve_beside(text, folder) if text.strip() and not any(ord(character) < 32 for character in text) else text


def _resolve_table_paths(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    paths = {name: table[name] for name in SUBSET_INPUT_PATHS if isinstance(table.get(name), str) and table[name].strip()}
    return {
        **table,
        **{name: resolve_beside(text, folder) for name, text in paths.items() if not any(ord(character) < 32 for character in text)},
    }


def resolve_beside(text: str, folder: Path | None) -> str:
    """The path with `~` expanded; a relative path that exists only in `folder` is resolved there."""
    if text.startswith("~"):
        text = os.path.expanduser(text)  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    path = Path(text)
    if folder is None or path.is_absolute():
        return text
    try:
        return str((folder / path).absolute()) if not path.exists() and (folder / path).exists() else text
    except OSError:  # the name is too long or not accessible: opening it will report that
        return text


def _without_none(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in mapping.items() if value is not None}


def _merged_text(config: TrainConfig, document: tomlkit.TOMLDocument) -> str:
    full, changed = {migrations.VERSION_KEY: migrations.VERSION, **to_mapping(config)}, to_mapping(config, changed_only=True)
    _merge(document, full, changed)
    return tomlkit.dumps(document)


def _merge(table: MutableMapping[str, Any], full: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Updates the table's values to the config's, and adds options that differ from the default."""
    for key in list(table):
        if key not in full or full[key] is None:
            del table[key]
        elif isinstance(full[key], dict):
            _merge(table[key], full[key], changed.get(key, {}))
        elif (table[key].unwrap() if hasattr(table[key], "unwrap") else table[key]) != full[key]:
            table[key] = full[key]
    for key, value in changed.items():
        if key not in table and value is not None:
            table[key] = value
