"""grid RUN --prompt "... <lora:NAME-NUM:STRENGTH>" --weights 0.2,0.4,... [--epochs 1,2] --out DIR"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lora_trainer.cli.common_args import add_json, find_run, host, parse_numbers, parse_whole_numbers
from lora_trainer.cli.console import Console
from lora_trainer.cli.main import as_usage_error
from lora_trainer.errors import TrainerError
from lora_trainer.jobs.status import translate_message
from lora_trainer.messages import say

WEIGHTS = "0.2,0.4,0.6,0.8,1.0"


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("run", metavar="RUN", help=console.translate(say("a run's folder or name")))
    prompt = say("the prompt, with <lora:NAME-NUM:STRENGTH> in it")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help=console.translate(prompt))
    parser.add_argument("--weights", default=WEIGHTS, metavar="0.2,0.4,...", help=console.translate(say("the columns")))
    parser.add_argument("--epochs", default="", metavar="1,2,...", help=console.translate(say("the rows; without: all that were saved")))
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=console.translate(say("where grid.png and grid.json go; without: RUN/grid"))
    )
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Draws the grid; with --json prints grid.json."""
    from lora_trainer.api.runs.start_grid import check_grid, new_grid
    from lora_trainer.cli.foreground import ProgressPrinter, exit_status, print_outcome, run_job
    from lora_trainer.jobs.job import Job

    folder = find_run(args.run)
    if (note := folder.version_note()) is not None:
        console.note(say("Note: {message}", message=note))
    weights = parse_numbers(args.weights, "--weights")
    epochs = parse_whole_numbers(args.epochs, "--epochs")
    try:
        check_grid(folder, args.prompt, weights, epochs)
    except TrainerError as error:
        raise as_usage_error(error) from error
    target = (args.out or folder.grid_dir).absolute()
    grid_folder, work = new_grid(folder, host(), prompt=args.prompt, weights=weights, epochs=epochs, out=target)
    job = Job(work, grid_folder, [ProgressPrinter(console)])
    status = run_job(job, console)
    print_outcome(job, console)
    grid = read_grid(target)
    if grid["cells"]:
        console.line(str(target / "grid.png"))
        console.line(verdict(grid, console.language))
    console.document(grid)
    return exit_status(status)


def read_grid(folder: Path) -> dict[str, Any]:
    """grid.json of a folder; without cells if nothing was drawn."""
    path = folder / "grid.json"
    grid: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": [], "best": None}
    return grid


def verdict(grid: dict[str, Any], language: str) -> str:
    """Text that says which cell is best and why, or why none is."""
    best = grid["best"]
    if best is None:
        reasons = [grid.get("because"), (grid.get("diagnosis") or {}).get("because")]
        return " ".join(translate_message(reason, language) for reason in reasons if reason)
    why = " ".join(translate_message(words, language) for words in best.get("words", [])) or best["because"]
    return say("Best: epoch {epoch} at {weight}. {why}", epoch=best["epoch"], weight=f"{best['weight']:g}", why=why).text(language)
