"""From a file or text to settings: which program wrote it, and what its keys are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from lora_trainer.config.checks.option_checks import options, problem
from lora_trainer.config.importing.arguments import Key, paths, translate_keys
from lora_trainer.config.importing.concepts import concepts
from lora_trainer.config.importing.learning import Read
from lora_trainer.config.importing.networks import argument_notes
from lora_trainer.config.importing.programs import KOHYA_NAMES, flattened, kohya, lora_scripts, sd_scripts
from lora_trainer.config.importing.reasons import REASONS
from lora_trainer.config.importing.result import Imported, Left, Taken
from lora_trainer.config.importing.values import number
from lora_trainer.config.migrations import migrated
from lora_trainer.errors import ConfigError
from lora_trainer.messages import Message, say

CONCEPTS = ("instance_data_dir", "instance_prompt")
LORA_SCRIPTS = ("model_train_type", "lr_restart_cycles", "positive_prompts", "enable_preview", "lycoris_algo", "optimizer_args_custom")
LARGEST = 1 << 20
"""Bytes of the largest prompt file that is read."""


def import_file(path: Path) -> Imported:
    """The settings of a file; text files that it names are looked for beside it. Raises ConfigError for what cannot be read."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([problem(str(path), "is not UTF-8 text.", "Save the file as UTF-8.")]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([problem(str(path), "cannot be read: {why}", "Check the path of the file.", why=str(error))]) from error
    return import_text(text, source=path, read=_reader(path.parent))


def import_text(text: str, *, source: Path | None = None, read: Read = lambda name: None) -> Imported:
    """The settings of a file's text. `read` gives the text of a file that it names. Raises ConfigError for what is no such text."""
    where = "" if source is None else str(source)
    content = _parsed(text, where)
    if isinstance(content, list):
        if any(isinstance(one, Mapping) and any(name in one for name in CONCEPTS) for one in content):
            return concepts(content)
        raise _unknown(where)
    if isinstance(listed := content.get("concepts_list"), Sequence) and not isinstance(listed, str):
        found = concepts(listed)
        others = [
            Left(key, value, say("Only the concepts of this file are read.")) for key, value in content.items() if key != "concepts_list"
        ]
        return attrs.evolve(found, left=(*found.left, *others))
    if any(name in content for name in CONCEPTS):
        return concepts([content])
    if _is_dataset(content):
        return _dataset(where)
    kind = kind_of(content, is_json=text.lstrip()[:1] == "{")
    if kind == "own":
        values, notes = migrated(content)
        return Imported("own", values, tuple(Taken(path, value, (path,)) for path, value in flattened(values)), notes=notes)
    flat = dict(flattened(content))
    keys: list[Key]
    keys, defaults = {"kohya_ss": kohya, "sd-scripts": sd_scripts, "lora-scripts": lora_scripts}[kind](flat)
    if not any(key.name in paths() or key.name in REASONS for key in keys):
        raise _unknown(where)
    translated, taken, left, filled = translate_keys(keys, read, defaults)
    return Imported(
        kind,
        translated,
        tuple(taken),
        tuple(left),
        tuple(filled),
        (*_changed(taken), *argument_notes({key.name: key.value for key in keys if key.why is None})),
    )


def kind_of(content: Mapping[str, Any], *, is_json: bool) -> str:
    """Which program's settings these are: a key of KINDS."""
    flat = dict(flattened(content))
    names = {key.rpartition(".")[2] for key in flat}
    ours = sum(key in options() for key in flat)
    if "version" in flat and not is_json:
        return "own"
    if is_json:
        return "own" if ours > sum(name in KOHYA_NAMES or name in REASONS for name in names) else "kohya_ss"
    if "metadata" in content:
        return "lora-scripts"
    theirs = sum(name in paths() or name in REASONS for name in names)
    if ours >= theirs and (ours or not theirs):
        return "own"
    return "lora-scripts" if names & set(LORA_SCRIPTS) or "additional_network" in content else "sd-scripts"


def _changed(taken: Sequence[Taken]) -> Iterator[Message]:
    """What was taken at another value than the file has."""
    for one in taken:
        if one.paths == ("data.bucket_reso_steps",) and 0 < number(one.value) < 8:
            yield say("{key} = {value}: the finest step here is 8 pixels, the size of one latent.", key=one.key, value=one.value)


def _parsed(text: str, where: str) -> Any:
    is_json = text.lstrip()[:1] in ("{", "[") and not _is_toml_table(text)
    try:
        content = json.loads(text) if is_json else tomlkit.parse(text).unwrap()
    except (ValueError, TOMLKitError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise ConfigError([problem(where, "it is not valid {kind} ({why}).", "Correct that line.", kind=kind, why=str(error))]) from error
    if not isinstance(content, (dict, list)):
        raise _unknown(where)
    return content


def _is_toml_table(text: str) -> bool:
    """Whether the text begins with a TOML table, "[model]" or "[[datasets]]", not with a JSON list."""
    first = text.lstrip().partition("\n")[0].partition("#")[0].strip()
    if not (first.startswith("[") and first.endswith("]")):
        return False
    try:
        json.loads(first)
    except ValueError:
        return first.strip("[]").strip() != "" and not any(sign in first for sign in '{},:"')
    return False


def _is_dataset(content: Mapping[str, Any]) -> bool:
    datasets = content.get("datasets")
    return isinstance(datasets, list) and any(isinstance(one, Mapping) for one in datasets)


def _dataset(where: str) -> Imported:
    """A dataset TOML is read as it is: the config only names it."""
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


def _unknown(where: str) -> ConfigError:
    return ConfigError(
        [
            problem(
                where,
                "it is no file of settings that is known here.",
                "Known are kohya_ss JSON, sd-scripts and lora-scripts TOML, Dreambooth concepts JSON, and configs of this trainer.",
            )
        ]
    )


def _reader(folder: Path) -> Read:
    def read(name: str) -> str | None:
        for path in (Path(name), folder / name):
            try:
                if path.is_file() and path.stat().st_size <= LARGEST:
                    return path.read_bytes().decode("utf-8-sig", "replace")
            except OSError:
                continue
        return None

    return read
