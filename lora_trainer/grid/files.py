"""Which of a run's files a grid may use: those that its manifest lists, unchanged since."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.errors import TrainerError
from lora_trainer.files import file_sha256
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.messages import Message, say

NUMBERED = re.compile(r"(?P<name>.+)-(?P<number>\d{6}|step\d{8})")


@attrs.frozen
class GridFile:
    """One row of a grid. `number` is what NUM stands for ("000003"; "" for NAME.safetensors); `validation` None: not measured."""

    epoch: int
    number: str
    path: Path
    sha256: str
    validation: float | None = None

    @property
    def stem(self) -> str:
        """The file's name as a prompt's tag has it."""
        return self.path.stem


@attrs.frozen
class RunFiles:
    """The rows in order of epochs, the NAME that they share, and what was left out."""

    name: str
    files: tuple[GridFile, ...]
    warnings: tuple[Message, ...]

    def losses(self) -> dict[int, float | None]:
        """Validation loss by epoch."""
        return {file.epoch: file.validation for file in self.files}


def files_of(run: Path) -> RunFiles:
    """One file per epoch: the numbered one, else the latest saved by steps, else the final one.

    Files that are gone or not as the run wrote them are left out and named. Raises TrainerError when none is left.
    """
    listed = listed_files(run)
    if not listed:
        raise TrainerError("the run {run} has saved no file.", run=run.name, path="run", fix="Choose a run that has saved files.")
    name = _name_of(listed[0][0])
    warnings: list[Message] = []
    rows: dict[int, GridFile] = {}
    for path, entry in listed:
        if (wrong := _what_is_wrong(path, entry["sha256"])) is not None:
            warnings.append(wrong)
            continue
        rows[entry["epoch"]] = GridFile(entry["epoch"], _number_of(path), path, entry["sha256"], entry.get("validation"))
    warnings += _strangers(listed[0][0].parent, name, {path for path, _ in listed})
    if not rows:
        reason = warnings[0] if warnings else ""
        raise TrainerError("the run {run} has no usable file: {reason}", run=run.name, reason=reason, path="run", fix="Train it again.")
    return RunFiles(name, tuple(rows[epoch] for epoch in sorted(rows)), tuple(warnings))


def chosen(found: RunFiles, epochs: list[int] | None) -> tuple[GridFile, ...]:
    """The rows of some epochs; all with None. Raises TrainerError for an epoch that has no usable file."""
    rows = {file.epoch: file for file in found.files}
    if missing := [epoch for epoch in epochs or () if epoch not in rows]:
        known = ", ".join(map(str, rows))
        raise TrainerError(
            "epoch {epoch} has no usable file.", epoch=missing[0], path="epochs", fix="Files there are for {known}.", known=known
        )
    return tuple(rows[epoch] for epoch in sorted(set(epochs or rows)))


def listed_files(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Files of the manifest with their places, whatever became of them; of one epoch's the one that stands for it comes last."""
    listed = [(_place(run, entry["path"]), entry) for entry in RunFolder(run).manifest().get("files", [])]
    return sorted(listed, key=lambda pair: (_rank(pair[0]), pair[1]["step"]))


def find_lora(name: str, folders: list[Path]) -> Path:
    """A LoRA that a prompt names, by its file's stem. Raises TrainerError when no folder holds it."""
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.rglob("*.safetensors")):
                if path.stem == name:
                    return path
    raise TrainerError("there is no LoRA called {name}.", name=name, path="prompt", fix="Correct its name in the prompt, or take it out.")


def _place(run: Path, written: str) -> Path:
    """Where a file of the manifest is; a relative one may be meant from the working directory or from beside the runs folder."""
    path = Path(written)
    if path.is_absolute() or path.exists():
        return path
    beside = run.parent.parent / path
    return beside if beside.exists() else path


def _name_of(path: Path) -> str:
    found = NUMBERED.fullmatch(path.stem)
    return found["name"] if found else path.stem


def _number_of(path: Path) -> str:
    found = NUMBERED.fullmatch(path.stem)
    return found["number"] if found else ""


def _rank(path: Path) -> int:
    """Files of one epoch in the order in which a later one wins."""
    number = _number_of(path)
    return 0 if not number else 1 if number.startswith("step") else 2


def _what_is_wrong(path: Path, sha256: str) -> Message | None:
    if not path.is_file():
        return say("{file} is gone and was left out.", file=path.name)
    try:
        same = file_sha256(path) == sha256
    except OSError as error:
        return say("{file} cannot be read ({reason}) and was left out.", file=path.name, reason=error.strerror or str(error))
    return None if same else say("{file} is not the file that this run wrote: it was left out.", file=path.name)


def _strangers(folder: Path, name: str, listed: set[Path]) -> list[Message]:
    """Numbered files of the same name that another run wrote."""
    if not folder.is_dir():
        return []
    same = [path for path in sorted(folder.glob("*.safetensors")) if (found := NUMBERED.fullmatch(path.stem)) and found["name"] == name]
    known = {path.name for path in listed}
    return [say("{file} is not from this run: it was left out.", file=path.name) for path in same if path.name not in known]
