"""The LoRA files of a run that a grid may use: those that its manifest lists, unchanged since they were written."""

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
    """One row of a grid. `number` is what NUM stands for ("000003"; "" for NAME.safetensors); `validation`: the loss, None without one."""

    epoch: int
    number: str
    path: Path
    sha256: str
    validation: float | None = None

    @property
    def stem(self) -> str:
        """The file's name as a prompt tag has it."""
        return self.path.stem


@attrs.frozen
class RunFiles:
    """One file per epoch in order, their common NAME, and warnings about files that were left out."""

    name: str
    files: tuple[GridFile, ...]
    warnings: tuple[Message, ...]

    def losses(self) -> dict[int, float | None]:
        """Validation loss by epoch."""
        return {file.epoch: file.validation for file in self.files}


def read_run_files(run: Path) -> RunFiles:
    """One file per epoch: the numbered one, else the latest saved by steps, else the final one.

    Files that are missing or changed are left out with a warning. Raises TrainerError when none is left.
    """
    listed = listed_files(run)
    if not listed:
        raise TrainerError("the run {run} has saved no file.", run=run.name, path="run", fix="Choose a run that has saved files.")
    name = _name_of(listed[0][0])
    warnings: list[Message] = []
    rows: dict[int, GridFile] = {}
    for path, entry in listed:
        if (problem := _check_file(path, entry["sha256"])) is not None:
            warnings.append(problem)
            continue
        rows[entry["epoch"]] = GridFile(entry["epoch"], _number_of(path), path, entry["sha256"], entry.get("validation"))
    warnings += _foreign_files(listed[0][0].parent, name, {path for path, _ in listed})
    if not rows:
        reason = warnings[0] if warnings else ""
        raise TrainerError("the run {run} has no usable file: {reason}", run=run.name, reason=reason, path="run", fix="Train it again.")
    return RunFiles(name, tuple(rows[epoch] for epoch in sorted(rows)), tuple(warnings))


def select_epochs(run_files: RunFiles, epochs: list[int] | None) -> tuple[GridFile, ...]:
    """The files of these epochs; of all with None. Raises TrainerError for an epoch without a usable file."""
    rows = {file.epoch: file for file in run_files.files}
    if missing := [epoch for epoch in epochs or () if epoch not in rows]:
        available = ", ".join(map(str, rows))
        raise TrainerError(
            "epoch {epoch} has no usable file.", epoch=missing[0], path="epochs", fix="Files there are for {known}.", known=available
        )
    return tuple(rows[epoch] for epoch in sorted(set(epochs or rows)))


def listed_files(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(path, manifest entry) of every file in the manifest, whether it still exists or not; an epoch's preferred file comes last."""
    listed = [(_resolve(run, entry["path"]), entry) for entry in RunFolder(run).manifest().get("files", [])]
    return sorted(listed, key=lambda pair: (_priority(pair[0]), pair[1]["step"]))


def _resolve(run: Path, name: str) -> Path:
    """The path of a file in the manifest; a relative one is looked up from the working directory, then beside the runs folder."""
    path = Path(name)
    if path.is_absolute() or path.exists():
        return path
    beside = run.parent.parent / path
    return beside if beside.exists() else path


def _name_of(path: Path) -> str:
    match = NUMBERED.fullmatch(path.stem)
    return match["name"] if match else path.stem


def _number_of(path: Path) -> str:
    match = NUMBERED.fullmatch(path.stem)
    return match["number"] if match else ""


def _priority(path: Path) -> int:
    """Sort key of an epoch's files: the highest is preferred."""
    number = _number_of(path)
    return 0 if not number else 1 if number.startswith("step") else 2


def _check_file(path: Path, sha256: str) -> Message | None:
    """What is wrong with a file; None where it is as the run wrote it."""
    if not path.is_file():
        return say("{file} is gone and was left out.", file=path.name)
    try:
        unchanged = file_sha256(path) == sha256
    except OSError as error:
        return say("{file} cannot be read ({reason}) and was left out.", file=path.name, reason=error.strerror or str(error))
    return None if unchanged else say("{file} is not the file that this run wrote: it was left out.", file=path.name)


def _foreign_files(folder: Path, name: str, listed: set[Path]) -> list[Message]:
    """Warnings about numbered files of the same name that another run wrote."""
    if not folder.is_dir():
        return []
    same = [path for path in sorted(folder.glob("*.safetensors")) if (match := NUMBERED.fullmatch(path.stem)) and match["name"] == name]
    names = {path.name for path in listed}
    return [say("{file} is not from this run: it was left out.", file=path.name) for path in same if path.name not in names]
