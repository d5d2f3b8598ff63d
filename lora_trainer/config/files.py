"""Configs as TOML files. Comments of the user's own file are kept when it is written again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError, TOMLKitError

from lora_trainer.config import migrations
from lora_trainer.config.build import apply_sets, build, to_mapping
from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError
from lora_trainer.files import write_atomically
from lora_trainer.messages import Message

INPUTS = (
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
TABLE_INPUTS = ("image_dir", "metadata_file", "mask_dir")
SECRET_LINE = re.compile(r"^(\S*token\s*=).*")
"""A line that may hold what is never shown."""
OUTPUTS = ("save.output_dir", "save.runs_dir", "log.logging_dir")


def read_config(path: Path, sets: Iterable[str] = (), tell: Callable[[Message], object] = lambda note: None) -> TrainConfig:
    """The config of a TOML file with `sets` ("a.b=c") put over it. `tell` hears what of an older file was brought to today's form.

    A relative folder or file to read that does not exist from the working directory but does beside the TOML is taken from there.
    Raises ConfigError that names the file, the line, or every wrong setting.
    """
    path = Path(path)
    values, notes = migrations.migrated(read_toml(path))
    for note in notes:
        tell(note)
    mapping = apply_sets(values, sets)
    return build(_with_places(mapping, path.parent))


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file. Raises ConfigError that names the file and the line."""
    text = _text_of(Path(path))
    try:
        return tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError) as error:
        line = _line_of(text, error)
        wrong = text.splitlines()[line - 1].strip() if 0 < line <= len(text.splitlines()) else ""
        fix = "Correct this line: {wrong}"
        if "\\" in wrong:
            fix = "Between double quotes a \\ begins an escape: use single quotes ('C:\\new\\train') or / instead of \\. The line: {wrong}"
        raise ConfigError(
            [
                problem(
                    str(path),
                    "line {line} is not valid TOML ({why}).",
                    fix,
                    line=line,
                    why=re.sub(r"\.? at line .*", "", str(error)),
                    wrong=SECRET_LINE.sub(r"\1 …", wrong),
                )
            ]
        ) from error


def write_config(config: TrainConfig, path: Path, *, template: Path | None = None) -> None:
    """Writes the config; with `template` that file's comments and order stay, and only what differs is changed. Raises TrainerError."""
    text = _merged(config, tomlkit.parse(_text_of(Path(template)))) if template else config_text(config)
    write_atomically(Path(path), text.encode("utf-8"))


def config_text(config: TrainConfig, *, changed_only: bool = False) -> str:
    """The config as TOML, with the version of its form in front; options that are empty (None) are left out."""
    return (
        tomlkit.dumps({migrations.KEY: migrations.VERSION, **_without_none(to_mapping(config, changed_only=changed_only))}).rstrip() + "\n"
    )


def _text_of(path: Path) -> str:
    where = str(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError([problem(where, "there is no such file.", "Check the path of the config file.")]) from error
    except (IsADirectoryError, PermissionError) as error:
        if path.is_dir():
            raise ConfigError([problem(where, "is a folder, not a file.", "Give the path of a TOML file.")]) from error
        raise ConfigError([problem(where, "may not be read.", "Change the rights of the file, or copy it somewhere else.")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([problem(where, "is not UTF-8 text.", "Save the file as UTF-8.")]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([problem(where, "cannot be read: {why}", "Check the path of the config file.", why=str(error))]) from error


def _line_of(text: str, error: Exception) -> int:
    """The line where reading goes wrong; for a key given twice, which is noticed late, the first line by which it is."""
    twice = "exists"
    if isinstance(error, ParseError) and twice not in str(error):
        return int(error.line)
    lines = text.splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        try:
            tomlkit.parse("".join(lines[:count])).unwrap()
        except (TOMLKitError, ValueError) as found:
            if twice in str(found):
                return count
    return len(lines)


def _with_places(mapping: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    """`~` opened in every path, and paths to read looked for beside the config file."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
    for path in INPUTS + OUTPUTS:
        section, _, name = path.partition(".")
        given = found[section].get(name) if isinstance(found.get(section), dict) else None
        if isinstance(given, (str, list)):
            found[section][name] = each_text(given, partial(_placed_text, beside=beside if path in INPUTS else None))
    tables = found["data"].get("subsets") if isinstance(found.get("data"), dict) else None
    if isinstance(tables, list):
        found["data"]["subsets"] = [_table_with_places(table, beside) if isinstance(table, Mapping) else table for table in tables]
    return found


def each_text(given: Any, bring: Callable[[str], str]) -> Any:
    """A text, or a list of them, with each brought to another one; anything else as it is."""
    if isinstance(given, (list, tuple)):
        return [bring(one) if isinstance(one, str) else one for one in given]
    return bring(given) if isinstance(given, str) else given


def _placed_text(text: str, beside: Path | None) -> str:
    return found_beside(text, beside) if text.strip() and not any(ord(sign) < 32 for sign in text) else text


def _table_with_places(table: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    places = {name: table[name] for name in TABLE_INPUTS if isinstance(table.get(name), str) and table[name].strip()}
    return {**table, **{name: found_beside(text, beside) for name, text in places.items() if not any(ord(sign) < 32 for sign in text)}}


def found_beside(text: str, beside: Path | None) -> str:
    """The path with `~` opened; a relative one that exists only in the folder `beside` is taken from there."""
    if text.startswith("~"):
        text = os.path.expanduser(text)  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    place = Path(text)
    if beside is None or place.is_absolute():
        return text
    try:
        return str((beside / place).absolute()) if not place.exists() and (beside / place).exists() else text
    except OSError:  # a name that is too long or may not be looked at: the one who opens it says so
        return text


def _without_none(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in mapping.items() if value is not None}


def _merged(config: TrainConfig, document: tomlkit.TOMLDocument) -> str:
    full, changed = {migrations.KEY: migrations.VERSION, **to_mapping(config)}, to_mapping(config, changed_only=True)
    _merge(document, full, changed)
    return tomlkit.dumps(document)


def _merge(table: MutableMapping[str, Any], full: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Values of the table are brought to the config's; what differs from the default and is not there is added."""
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
