"""The files of a run: names, side files, and protection against overwriting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from lora_trainer.errors import ConfigError, Problem, TrainerError
from lora_trainer.files import write_atomically
from lora_trainer.jobs.claims import AlreadyClaimed, Claim
from lora_trainer.messages import say
from lora_trainer.parsing import read_json_object


@attrs.frozen
class OutputNames:
    """File names of one run (sd-scripts' numbering, but the last epoch has its number too)."""

    folder: Path
    name: str

    def epoch(self, number: int) -> Path:
        """NAME-000001.safetensors"""
        return self.folder / f"{self.name}-{number:06d}.safetensors"

    def step(self, number: int) -> Path:
        """NAME-step00000001.safetensors"""
        return self.folder / f"{self.name}-step{number:08d}.safetensors"

    def final(self) -> Path:
        """NAME.safetensors"""
        return self.folder / f"{self.name}.safetensors"

    def existing(self) -> list[Path]:
        """Existing files with names that a run of this name could write."""
        if not self.folder.is_dir():
            return []
        prefix = f"{self.name}-"
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.suffix == ".safetensors"
            and (path.stem == self.name or (path.stem.startswith(prefix) and path.stem[len(prefix) :].removeprefix("step").isdigit()))
        ]


def refuse_overwriting(names: OutputNames, overwrite: bool) -> None:
    """Raises ConfigError that suggests a free name when files of an earlier run would be overwritten."""
    if overwrite or not (existing := names.existing()):
        return
    number = 2
    while OutputNames(names.folder, f"{names.name}-v{number}").existing():
        number += 1
    raise ConfigError(
        [
            Problem(
                "save.output_name",
                say("{file} already exists.", file=str(existing[0])),
                say("Use the name {free}, or turn on Overwrite (save.overwrite = true).", free=f"{names.name}-v{number}"),
            )
        ]
    )


def remove_partial_files(names: OutputNames) -> None:
    """Deletes partly written files that a killed run of this name left in its folder."""
    pattern = re.compile(rf"\.{re.escape(names.name)}(-\d{{6}}|-step\d{{8}})?\.(safetensors|json|preview\.png)\.[0-9a-f]+\.part")
    for path in names.folder.glob(".*.part") if names.folder.is_dir() else ():
        if pattern.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


@contextmanager
def claimed_names(names: OutputNames, overwrite: bool) -> Iterator[None]:
    """Inside, a lock file keeps other runs on this machine from writing files of this name.

    Raises TrainerError when another run has the lock, ConfigError when files of the name have appeared in the meantime.
    """
    try:
        names.folder.mkdir(parents=True, exist_ok=True)
        claim = Claim.take(names.folder / f".{names.name}.running")
    except AlreadyClaimed:
        raise TrainerError(
            "another run is writing files named {name} in {folder}.",
            name=names.name,
            folder=str(names.folder),
            path="save.output_name",
            fix="Wait until it has ended, or use another name.",
        ) from None
    except OSError as error:
        raise TrainerError(
            "{folder} cannot be written ({reason}).",
            folder=str(names.folder),
            reason=error.strerror or error,
            path="save.output_dir",
            fix="Choose a folder that you may write to.",
        ) from error
    try:
        refuse_overwriting(names, overwrite)
        yield
    finally:
        claim.release()


def write_side_files(weights: Path, *, trigger: str, description: str, preview: Path | None) -> None:
    """Writes the .json (and .preview.png) that the WebUI shows with a LoRA; existing keys keep their values."""
    side_file = weights.with_suffix(".json")
    existing = read_json_object(side_file)
    defaults = {
        "description": description,
        "sd version": "SD1",
        "activation text": trigger,
        "preferred weight": 0,
        "negative text": "",
        "notes": "",
    }
    text = json.dumps({**defaults, **existing}, ensure_ascii=False, indent=4)
    write_atomically(side_file, text.encode("utf-8"))
    if preview is not None and preview.is_file():
        write_atomically(weights.with_suffix(".preview.png"), preview.read_bytes())
