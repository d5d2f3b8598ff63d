"""The user's own choice: which epoch at which weight, written where the WebUI's LoRA card reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_trainer.errors import TrainerError
from lora_trainer.files import write_atomically
from lora_trainer.grid.files import listed_files
from lora_trainer.jobs.folder import RunFolder


def use(run: Path, epoch: int, weight: float) -> dict[str, Any]:
    """Writes "preferred weight" into the file's .json, keeping what else stands there, and notes the choice with the run.

    Returns {"file", "name", "weight", "prompt"}. Raises TrainerError when the epoch has no file any more.
    """
    there = [path for path, entry in listed_files(run) if entry["epoch"] == epoch and path.is_file()]
    if not there:
        raise TrainerError(
            "epoch {epoch} of {run} has no file any more.", epoch=epoch, run=run.name, path="epoch", fix="Choose another epoch."
        )
    file = there[-1]
    beside = file.with_suffix(".json")
    known: dict[str, Any] = {}
    if beside.is_file():
        try:
            known = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError:  # broken: written anew
            known = {}
    write_atomically(beside, json.dumps(known | {"preferred weight": weight}, ensure_ascii=False, indent=4).encode("utf-8"))
    RunFolder(run).describe(chosen={"epoch": epoch, "weight": weight})
    return {"file": str(file), "name": file.stem, "weight": weight, "prompt": f"<lora:{file.stem}:{weight:g}>"}
