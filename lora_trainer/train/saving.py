"""The files of a run: their names, what is written beside them, and what may be overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import attrs

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.files import write_atomically
from lora_trainer.messages import say


@attrs.frozen
class Names:
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


def refuse_overwriting(names: Names, overwrite: bool) -> None:
    """Raises ConfigError with a free name when files of an earlier run stand where this run would write."""
    if overwrite or not (taken := names.taken()):
        return
    number = 2
    while Names(names.folder, f"{names.name}-v{number}").taken():
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
