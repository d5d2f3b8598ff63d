"""grid RUN --prompt "... <lora:NAME-NUM:STRENGTH>" --weights 0.2,0.4,... [--epochs 1,2] --out DIR"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lora_trainer.cli.common_args import add_json, host, numbers, run_folder
from lora_trainer.cli.console import Console
from lora_trainer.cli.main import as_wrong_usage
from lora_trainer.errors import TrainerError
from lora_trainer.jobs.status import word_message
from lora_trainer.messages import say

WEIGHTS = "0.2,0.4,0.6,0.8,1.0"


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    parser.add_argument("run", metavar="RUN", help=out.worded(say("a run's folder or name")))
    prompt = say("the prompt, with <lora:NAME-NUM:STRENGTH> in it")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help=out.worded(prompt))
    parser.add_argument("--weights", default=WEIGHTS, metavar="0.2,0.4,...", help=out.worded(say("the columns")))
    parser.add_argument("--epochs", default="", metavar="1,2,...", help=out.worded(say("the rows; without: all that were saved")))
    parser.add_argument("--out", type=Path, metavar="DIR", help=out.worded(say("where grid.png and grid.json go; without: RUN/grid")))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Draws the grid; with --json prints grid.json."""
    from lora_trainer.api.runs.start_grid import check_grid, new_grid
    from lora_trainer.cli.foreground import ProgressPrinter, exit_status, run_job, tell_end
    from lora_trainer.jobs.job import Job

    folder = run_folder(args.run)
    if (note := folder.note()) is not None:
        out.note(say("Note: {message}", message=note))
    weights = numbers(args.weights, "--weights")
    epochs = [int(number) for number in numbers(args.epochs, "--epochs")]
    try:
        check_grid(folder, args.prompt, weights, epochs)
    except TrainerError as error:
        raise as_wrong_usage(error) from error
    target = (args.out or folder.grid).absolute()
    own, work = new_grid(folder, host(), prompt=args.prompt, weights=weights, epochs=epochs, out=target)
    job = Job(work, own, [ProgressPrinter(out)])
    status = run_job(job, out)
    tell_end(job, out)
    found = read_grid(target)
    if found["cells"]:
        out.line(str(target / "grid.png"))
        out.line(verdict(found, out.language))
    out.document(found)
    return exit_status(status)


def read_grid(folder: Path) -> dict[str, Any]:
    """grid.json of a folder; no cells where nothing was drawn."""
    path = folder / "grid.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": [], "best": None}
    return found


def verdict(found: dict[str, Any], language: str) -> str:
    """Which cell is best and why, or why none is."""
    best = found["best"]
    if best is None:
        return word_message(found.get("because") or "", language)
    why = " ".join(word_message(words, language) for words in best.get("words", [])) or best["because"]
    return say("Best: epoch {epoch} at {weight}. {why}", epoch=best["epoch"], weight=f"{best['weight']:g}", why=why).text(language)
