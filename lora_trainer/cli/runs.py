"""runs [--dir DIR] [--json]"""

from __future__ import annotations

import argparse
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_trainer.cli.common_args import add_json, host
from lora_trainer.cli.console import DONE, Console
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.messages import say


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("--dir", type=Path, metavar="DIR", help=console.translate(say("the folder of runs; without: ./runs")))
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Lists the runs, newest first; with --json also each one's path, last losses and files."""
    from lora_trainer.jobs.manager import JobManager

    folder = (args.dir or host().paths().runs_dir).absolute()
    summaries = JobManager().history(folder, language=console.language)
    for summary in summaries:
        started = _format_time(summary["started"])
        console.line(f"{summary['state']:<12} {started:<16}  {summary['step']:>6} / {summary['total_steps']:<6}  {summary['name']}")
        for problem in summary["problems"]:
            console.line(f"  {problem['message']} {problem['fix']}")
    if not summaries:
        console.line(say("No runs in {folder}.", folder=str(folder)))
    console.document([summary | _manifest_facts(RunFolder(folder / summary["id"])) for summary in summaries])
    return DONE


def _format_time(seconds: float) -> str:
    """A time since 1970 for people; empty if it is unknown or damaged."""
    with suppress(OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""
    return ""


def _manifest_facts(folder: RunFolder) -> dict[str, Any]:
    """Facts from a run's manifest: its last losses, its time, and every file with step, hash and losses."""
    manifest = folder.manifest()
    files, validations = manifest.get("files", []), manifest.get("validation", [])
    started, ended = manifest.get("started"), manifest.get("ended")
    return {
        "path": str(folder.path),
        "epochs": manifest.get("epochs") or folder.plan().get("epochs", 0),
        "ended": ended,
        "seconds": round(ended - started, 1) if started and ended else None,
        "step_seconds": manifest.get("step_seconds"),
        "loss": files[-1].get("loss") if files else None,
        "validation": validations[-1]["loss"] if validations else None,
        "best": manifest.get("best"),
        "weights": files,
        "samples": len(manifest.get("samples", [])),
    }
