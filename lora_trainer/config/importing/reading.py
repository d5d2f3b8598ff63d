"""Reads a settings file or text: detects which program wrote it and translates its keys."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.config.checks.option_checks import options, problem
from lora_trainer.config.importing.arguments import SPECIAL, Translated, paths_by_name, prompt_notes, translate_keys
from lora_trainer.config.importing.detection import detect_kind
from lora_trainer.config.importing.forms import parse_settings, unknown_file
from lora_trainer.config.importing.learning import ReadText
from lora_trainer.config.importing.networks import argument_notes, whole_matrix_notes
from lora_trainer.config.importing.reasons import REASONS
from lora_trainer.config.importing.result import KINDS, Imported, Left, Taken
from lora_trainer.config.importing.trainers.ai_toolkit import ai_toolkit_keys
from lora_trainer.config.importing.trainers.dreambooth_concepts import import_concepts_file
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import (
    ProgramKeys,
    command_keys,
    kohya_keys,
    lora_scripts_keys,
    sd_scripts_keys,
)
from lora_trainer.config.importing.trainers.lycoris import lycoris_keys
from lora_trainer.config.importing.trainers.one_trainer import one_trainer_keys
from lora_trainer.config.importing.trainers.simple_tuner import simple_tuner_keys
from lora_trainer.config.importing.values import flatten, to_number
from lora_trainer.config.migrations import migrate
from lora_trainer.errors import ConfigError, NothingToImport
from lora_trainer.files import read_regular
from lora_trainer.messages import Message, say

PROGRAMS: Mapping[str, Callable[[Any, ReadText], ProgramKeys]] = {
    "kohya_ss": kohya_keys,
    "sd-scripts": sd_scripts_keys,
    "command": command_keys,
    "lora-scripts": lora_scripts_keys,
    "onetrainer": one_trainer_keys,
    "ai-toolkit": ai_toolkit_keys,
    "simpletuner": simple_tuner_keys,
    "lycoris": lycoris_keys,
}
GUESSED = ("kohya_ss", "sd-scripts")
"""Programs whose files have no mark of their own."""
FEW = 10
"""A file of which fewer than one in so many keys is taken is hardly one of settings."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How PowerShell's own text files begin."""
MAX_BYTES = 8 << 20
"""A larger file is no settings file."""
MAX_PROMPT_FILE_BYTES = 1 << 20
"""Larger prompt files are not read."""


def import_file(path: Path) -> Imported:
    """The settings of a file; text files that it names are looked for relative to it. Raises ConfigError if it cannot be read."""
    path = Path(path)
    try:
        content = read_regular(path, MAX_BYTES)
        text = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([problem(str(path), "is not UTF-8 text.", "Save the file as UTF-8.")]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([problem(str(path), "cannot be read: {why}", "Check the path of the file.", why=str(error))]) from error
    return import_text(text, source=path, read=_reader(path.parent))


def import_text(text: str, *, source: Path | None = None, read: ReadText = lambda name: None) -> Imported:
    """The settings of a file's text. `read` returns the text of a file that it names. Raises ConfigError if it holds no known settings."""
    where = "" if source is None else str(source)
    content = parse_settings(text, where)
    kind = detect_kind(content)
    if kind == "":
        raise unknown_file(where)
    if kind == "preset":
        raise _preset_error(where)
    if kind == "dreambooth":
        return import_concepts_file(content.values)
    if kind == "dataset":
        return _import_dataset(where)
    if kind == "own":
        values, notes = migrate(content.values)
        return Imported("own", values, tuple(Taken(path, value, (path,)) for path, value in flatten(values)), notes=notes)
    return _import_keys(kind, PROGRAMS[kind](content.values, read), read, where)


def _import_keys(kind: str, program: ProgramKeys, read: ReadText, where: str) -> Imported:
    known = sum(key.name in paths_by_name() or key.name in REASONS or key.name in SPECIAL for key in program.keys)
    if kind in GUESSED and 2 * known < max(1, len(program.keys)):
        raise unknown_file(where)
    translated = translate_keys(program.keys, read, program.defaults, program.context)
    if not translated.taken or _is_nearly_nothing(translated):
        raise _nothing_taken(kind, where, translated.left)
    settings = dict(program.context) | {key.name: key.value for key in program.keys if key.why is None}
    notes = (
        *program.notes,
        *translated.notes,
        *_changed_values(translated.taken),
        *whole_matrix_notes(settings),
        *argument_notes(settings),
        *prompt_notes(settings, read),
    )
    return Imported(kind, translated.values, translated.taken, translated.left, translated.filled, notes)


def _is_nearly_nothing(translated: Translated) -> bool:
    """Whether hardly any key means something here: of many keys fewer than one in ten, and no model, network, rate or length."""
    sections = {path.partition(".")[0] for one in translated.taken for path in one.paths}
    total = len(translated.taken) + len(translated.left)
    return total >= FEW * len(translated.taken) and not sections & {"model", "network", "optimizer", "steps", "data"}


def _changed_values(taken: Sequence[Taken]) -> Iterator[Message]:
    """A note for each key that was taken with a changed value."""
    for one in taken:
        if one.paths == ("data.bucket_reso_steps",) and 0 < to_number(one.value) < 8:
            yield say("{key} = {value}: the finest step here is 8 pixels, the size of one latent.", key=one.key, value=one.value)


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


def _preset_error(where: str) -> NothingToImport:
    return NothingToImport(
        [
            problem(
                where,
                "it is a LyCORIS preset, a list of layers: not settings.",
                "Import the settings that name it, and choose the layers here: network.preset, network.include and network.exclude.",
            )
        ]
    )


def _nothing_taken(kind: str, where: str, left: Sequence[Left]) -> NothingToImport:
    first = left[0] if left else None
    return NothingToImport(
        [
            problem(
                where,
                "none of its {count} keys can be taken (read as {program}). The first, {key}: {why}",
                "Choose the file that holds the settings of the training.",
                count=len(left),
                program=KINDS[kind],
                key=first.key if first else "-",
                why=first.why if first else "-",
            )
        ]
    )


def _reader(folder: Path) -> ReadText:
    def read(name: str) -> str | None:
        for path in (Path(name), folder / name):
            try:
                if path.is_file() and path.stat().st_size <= MAX_PROMPT_FILE_BYTES:
                    return read_regular(path, MAX_PROMPT_FILE_BYTES).decode("utf-8-sig", "replace")
            except OSError:
                continue
        return None

    return read
