"""The files of a run: their names, what is written beside them, and what may be overwritten."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from lora_trainer.errors import ConfigError, Problem, TrainerError
from lora_trainer.files import write_atomically
from lora_trainer.jobs.process import process_alive, process_mark
from lora_trainer.messages import say


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

    def taken(self) -> list[Path]:
        """Files that a run of this name would meet."""
        if not self.folder.is_dir():
            return []
        start = f"{self.name}-"
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.suffix == ".safetensors"
            and (path.stem == self.name or (path.stem.startswith(start) and path.stem[len(start) :].removeprefix("step").isdigit()))
        ]


def refuse_overwriting(names: OutputNames, overwrite: bool) -> None:
    """Raises ConfigError with a free name when files of an earlier run stand where this run would write."""
    if overwrite or not (taken := names.taken()):
        return
    number = 2
    while OutputNames(names.folder, f"{names.name}-v{number}").taken():
        number += 1
    raise ConfigError(
        [
            Problem(
                "save.output_name",
                say("{file} already exists.", file=str(taken[0])),
                say("Use the name {free}, or set save.overwrite to true.", free=f"{names.name}-v{number}"),
            )
        ]
    )


def sweep(names: OutputNames) -> None:
    """Deletes what a killed run of these names left half-written in its folder."""
    ours = re.compile(rf"\.{re.escape(names.name)}(-\d{{6}}|-step\d{{8}})?\.(safetensors|json|preview\.png)\.[0-9a-f]+\.part")
    for path in names.folder.glob(".*.part") if names.folder.is_dir() else ():
        if ours.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


@contextmanager
def claimed_names(names: OutputNames, overwrite: bool) -> Iterator[None]:
    """Holds a run's file names, so that no other run of this machine writes them meanwhile.

    Raises TrainerError when another run holds them, ConfigError when files of the name came since somebody last looked.
    """
    claim, own = names.folder / f".{names.name}.running", f"{os.getpid()} {process_mark(os.getpid())}"
    try:
        names.folder.mkdir(parents=True, exist_ok=True)
        if _left_behind(claim):
            claim.unlink(missing_ok=True)
        handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError as error:
        raise TrainerError(
            "another run is writing files named {name} in {folder}.",
            name=names.name,
            folder=str(names.folder),
            path="save.output_name",
            fix="Wait until it has ended, or use another name.",
        ) from error
    except OSError as error:
        raise TrainerError(
            "{folder} cannot be written ({reason}).",
            folder=str(names.folder),
            reason=error.strerror or error,
            path="save.output_dir",
            fix="Choose a folder that you may write to.",
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(own)
        refuse_overwriting(names, overwrite)
        yield
    finally:
        claim.unlink(missing_ok=True)


def _left_behind(claim: Path) -> bool:
    """Whether the run that made it is dead. One that is just being written belongs to somebody alive."""
    try:
        pid, _, mark = claim.read_text(encoding="utf-8").partition(" ")
        return bool(pid) and not process_alive(int(pid), mark)
    except (OSError, ValueError):
        return False


def write_side_files(weights: Path, *, trigger: str, description: str, preview: Path | None) -> None:
    """The .json (and .preview.png) that the WebUI shows with a LoRA; what the user wrote there before is kept."""
    beside = weights.with_suffix(".json")
    known: dict[str, object] = {}
    if beside.is_file():
        try:
            known = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
    fresh = {
        "description": description,
        "sd version": "SD1",
        "activation text": trigger,
        "preferred weight": 0,
        "negative text": "",
        "notes": "",
    }
    text = json.dumps({**fresh, **known}, ensure_ascii=False, indent=4)
    write_atomically(beside, text.encode("utf-8"))
    if preview is not None and preview.is_file():
        write_atomically(weights.with_suffix(".preview.png"), preview.read_bytes())


def remove(paths: Iterable[Path]) -> None:
    """Deletes files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)
