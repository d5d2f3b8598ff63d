"""grid.json: a grid's cells, scores and ranking, written after each cell; and the user's choice among the cells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.errors import TrainerError
from lora_trainer.files import write_atomically
from lora_trainer.grid.cell_scores import Cell, Scores
from lora_trainer.grid.files import listed_files
from lora_trainer.grid.rank import Ranking
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.messages import Message
from lora_trainer.parsing import read_json_object
from lora_trainer.train.previews.preview_prompts import SampleRequest

CELLS = "cells"


@attrs.define(eq=False)
class GridRecord:
    """The content of grid.json. `folder` is the run's grid/, `out` the folder for a copy (the same folder: no copy).

    Picture paths are relative to grid.json.
    """

    folder: Path
    out: Path
    prompt: str
    request: SampleRequest
    weights: Sequence[float]
    epochs: Sequence[int]
    cells: list[dict[str, Any]] = attrs.field(factory=list)
    base: str | None = None
    ranking: Ranking | None = None
    not_ranked: Message | None = None
    seconds: float | None = None

    def add(self, epoch: int, weight: float, prompt: str, picture: Path, nearest: Path | None) -> None:
        """Adds a drawn cell."""
        self.cells.append(
            {
                "epoch": epoch,
                "weight": weight,
                "prompt": prompt,
                "image": self.add_picture(picture),
                "scores": None,
                "nearest": str(nearest) if nearest else None,
            }
        )

    def add_picture(self, picture: Path) -> str:
        """The picture's path relative to grid.json; copies the picture where `out` is another folder."""
        name = f"{CELLS}/{picture.name}"
        if self.out != self.folder:
            (self.out / CELLS).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, self.out / name)
        return name

    def set_scores(self, scores: Sequence[Scores]) -> None:
        """Sets the scores of measured cells."""
        by_cell: dict[Cell, Scores] = {score.cell: score for score in scores}
        for cell in self.cells:
            score = by_cell.get((cell["epoch"], cell["weight"]))
            cell["scores"] = None if score is None else _score_values(score)

    def to_json(self) -> dict[str, Any]:
        """The content of grid.json."""
        ranking = self.ranking
        best = None
        if ranking is not None and ranking.best is not None:
            best = {
                "epoch": ranking.best.epoch,
                "weight": ranking.best.weight,
                "because": _join(ranking.because),
                "sure": ranking.sure,
                "margin": None if ranking.margin is None else round(min(ranking.margin, 99.0), 2),
                "words": [message.to_json() for message in ranking.because],
            }
        message = self.not_ranked if self.not_ranked is not None else _no_best_message(ranking)
        return {
            "cells": self.cells,
            "best": best,
            "sentence": "" if message is None else str(message),
            "because": None if message is None else message.to_json(),
            "diagnosis": None
            if ranking is None or ranking.diagnosis is None
            else attrs.asdict(ranking.diagnosis, recurse=False) | {"because": ranking.diagnosis.because.to_json()},
            "overtrained": None if ranking is None else ranking.overtrained,
            "prompt": self.prompt,
            "negative": self.request.negative,
            "weights": list(self.weights),
            "epochs": list(self.epochs),
            "base": self.base,
            "seed": self.request.seed,
            "steps": self.request.steps,
            "cfg": self.request.cfg,
            "sampler": self.request.sampler,
            "width": self.request.width,
            "height": self.request.height,
            "clip_skip": self.request.clip_skip,
            "seconds": self.seconds,
        }

    def write(self) -> None:
        """Writes grid.json and its copy in `out`."""
        content = json.dumps(self.to_json(), ensure_ascii=False, indent=1).encode("utf-8")
        for folder in dict.fromkeys((self.folder, self.out)):
            write_atomically(folder / "grid.json", content)


def _no_best_message(ranking: Ranking | None) -> Message | None:
    return ranking.because[0] if ranking is not None and ranking.best is None else None


def _join(messages: Sequence[Message]) -> str:
    return " ".join(map(str, messages))


def _score_values(score: Scores) -> dict[str, Any]:
    values = attrs.asdict(score, filter=lambda field, _: field.name not in ("epoch", "weight"))
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


def set_preferred_weight(run: Path, epoch: int, weight: float) -> dict[str, Any]:
    """Writes "preferred weight" into the .json beside an epoch's file, keeping its other keys, and records the choice with the run.

    Returns {"file", "name", "weight", "prompt"}. Raises TrainerError when the epoch's file no longer exists.
    """
    existing = [path for path, entry in listed_files(run) if entry["epoch"] == epoch and path.is_file()]
    if not existing:
        raise TrainerError(
            "epoch {epoch} of {run} has no file any more.", epoch=epoch, run=run.name, path="epoch", fix="Choose another epoch."
        )
    file = existing[-1]
    side_file = file.with_suffix(".json")
    content = read_json_object(side_file)
    write_atomically(side_file, json.dumps(content | {"preferred weight": weight}, ensure_ascii=False, indent=4).encode("utf-8"))
    RunFolder(run).update_info(chosen={"epoch": epoch, "weight": weight})
    return {"file": str(file), "name": file.stem, "weight": weight, "prompt": f"<lora:{file.stem}:{weight:g}>"}
