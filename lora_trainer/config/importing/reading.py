"""Reads a settings file or text: detects which program wrote it and translates its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from lora_trainer.config.checks.option_checks import options, problem
from lora_trainer.config.importing.arguments import Key, paths_by_name, translate_keys
from lora_trainer.config.importing.concepts import import_concepts
from lora_trainer.config.importing.learning import ReadText
from lora_trainer.config.importing.networks import argument_notes
from lora_trainer.config.importing.programs import KOHYA_NAMES, flatten, kohya_keys, lora_scripts_keys, sd_scripts_keys
from lora_trainer.config.importing.reasons import REASONS
from lora_trainer.config.importing.result import Imported, Left, Taken
from lora_trainer.config.importing.values import to_number
from lora_trainer.config.migrations import migrate
from lora_trainer.errors import ConfigError
from lora_trainer.messages import Message, say

CONCEPT_KEYS = ("instance_data_dir", "instance_prompt")
LORA_SCRIPTS_KEYS = ("model_train_type", "lr_restart_cycles", "positive_prompts", "enable_preview", "lycoris_algo", "optimizer_args_custom")
MAX_PROMPT_FILE_BYTES = 1 << 20
"""Larger prompt files are not read."""


def import_file(path: Path) -> Imported:
    """The settings of a file; text files that it names are looked for relative to it. Raises ConfigError if it cannot be read."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([problem(str(path), "is not UTF-8 text.", "Save the file as UTF-8.")]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([problem(str(path), "cannot be read: {why}", "Check the path of the file.", why=str(error))]) from error
    return import_text(text, source=path, read=_reader(path.parent))


def import_text(text: str, *, source: Path | None = None, read: ReadText = lambda name: None) -> Imported:
    """The settings of a file's text. `read` returns the text of a file that it names. Raises ConfigError if it holds no known settings."""
    where = "" if source is None else str(source)
    content = _parse(text, where)
    if isinstance(content, list):
        if any(isinstance(entry, Mapping) and any(name in entry for name in CONCEPT_KEYS) for entry in content):
            return import_concepts(content)
        raise _unknown_file(where)
    if isinstance(concepts_list := content.get("concepts_list"), Sequence) and not isinstance(concepts_list, str):
        imported = import_concepts(concepts_list)
        others = [
            Left(key, value, say("Only the concepts of this file are read.")) for key, value in content.items() if key != "concepts_list"
        ]
        return attrs.evolve(imported, left=(*imported.left, *others))
    if any(name in content for name in CONCEPT_KEYS):
        return import_concepts([content])
    if _is_dataset(content):
        return _import_dataset(where)
    kind = detect_kind(content, is_json=text.lstrip()[:1] == "{")
    if kind == "own":
        values, notes = migrate(content)
        return Imported("own", values, tuple(Taken(path, value, (path,)) for path, value in flatten(values)), notes=notes)
    flat = dict(flatten(content))
    keys: list[Key]
    keys, defaults = {"kohya_ss": kohya_keys, "sd-scripts": sd_scripts_keys, "lora-scripts": lora_scripts_keys}[kind](flat)
    if not any(key.name in paths_by_name() or key.name in REASONS for key in keys):
        raise _unknown_file(where)
    translated, taken, left, filled = translate_keys(keys, read, defaults)
    return Imported(
        kind,
        translated,
        tuple(taken),
        tuple(left),
        tuple(filled),
        (*_changed_values(taken), *argument_notes({key.name: key.value for key in keys if key.why is None})),
    )


def detect_kind(content: Mapping[str, Any], *, is_json: bool) -> str:
    """The program whose settings these are: a key of KINDS."""
    flat = dict(flatten(content))
    names = {key.rpartition(".")[2] for key in flat}
    own_keys = sum(key in options() for key in flat)
    if "version" in flat and not is_json:
        return "own"
    if is_json:
        return "own" if own_keys > sum(name in KOHYA_NAMES or name in REASONS for name in names) else "kohya_ss"
    if "metadata" in content:
        return "lora-scripts"
    foreign_keys = sum(name in paths_by_name() or name in REASONS for name in names)
    if own_keys >= foreign_keys and (own_keys or not foreign_keys):
        return "own"
    return "lora-scripts" if names & set(LORA_SCRIPTS_KEYS) or "additional_network" in content else "sd-scripts"


def _changed_values(taken: Sequence[Taken]) -> Iterator[Message]:
    """A note for each key that was taken with a changed value."""
    for one in taken:
        if one.paths == ("data.bucket_reso_steps",) and 0 < to_number(one.value) < 8:
            yield say("{key} = {value}: the finest step here is 8 pixels, the size of one latent.", key=one.key, value=one.value)


def _parse(text: str, where: str) -> Any:
    is_json = text.lstrip()[:1] in ("{", "[") and not _is_toml_table(text)
    try:
        content = json.loads(text) if is_json else tomlkit.parse(text).unwrap()
    except (ValueError, TOMLKitError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise ConfigError([problem(where, "it is not valid {kind} ({why}).", "Correct that line.", kind=kind, why=str(error))]) from error
    if not isinstance(content, (dict, list)):
        raise _unknown_file(where)
    return content


def _is_toml_table(text: str) -> bool:
    """Whether the text begins with a TOML table, "[model]" or "[[datasets]]", rather than a JSON list."""
    first_line = text.lstrip().partition("\n")[0].partition("#")[0].strip()
    if not (first_line.startswith("[") and first_line.endswith("]")):
        return False
    try:
        json.loads(first_line)
    except ValueError:
        return first_line.strip("[]").strip() != "" and not any(character in first_line for character in '{},:"')
    return False


def _is_dataset(content: Mapping[str, Any]) -> bool:
    datasets = content.get("datasets")
    return isinstance(datasets, list) and any(isinstance(entry, Mapping) for entry in datasets)


def _import_dataset(where: str) -> Imported:
    """A dataset TOML is not converted: the config only names it."""
    if where and "data.dataset_config" in options():
        return Imported(
            "dataset",
            {"data": {"dataset_config": str(Path(where).absolute())}},
            (Taken("datasets", where, ("data.dataset_config",)),),
            notes=(say("A dataset TOML is read as it is: data.dataset_config names it."),),
        )
    raise ConfigError(
        [
            problem(
                where,
                "it describes data sets, not a run.",
                "Put its path into data.dataset_config.",
            )
        ]
    )


def _unknown_file(where: str) -> ConfigError:
    return ConfigError(
        [
            problem(
                where,
                "it is not a settings file of a known kind.",
                "Known are kohya_ss JSON, sd-scripts and lora-scripts TOML, Dreambooth concepts JSON, and configs of this trainer.",
            )
        ]
    )


def _reader(folder: Path) -> ReadText:
    def read(name: str) -> str | None:
        for path in (Path(name), folder / name):
            try:
                if path.is_file() and path.stat().st_size <= MAX_PROMPT_FILE_BYTES:
                    return path.read_bytes().decode("utf-8-sig", "replace")
            except OSError:
                continue
        return None

    return read
