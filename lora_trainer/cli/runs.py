"""runs [--dir DIR] [--json]"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_trainer.cli.common_args import add_json, host
from lora_trainer.cli.console import DONE, Console
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    parser.add_argument("--dir", type=Path, metavar="DIR", help=out.worded(say("the folder of runs; without: ./runs")))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Lists the runs, newest first; with --json also where each is, what it measured last and what it wrote."""
    from lora_trainer.jobs.manager import JobManager

    folder = (args.dir or host().paths().runs_dir).absolute()
    found = JobManager().history(folder)
    for one in found:
        begun = datetime.fromtimestamp(one["started"]).strftime("%Y-%m-%d %H:%M") if one["started"] else ""
        out.line(f"{one['state']:<12} {begun:<16}  {one['step']:>6} / {one['total_steps']:<6}  {one['name']}")
    if not found:
        out.line(say("No runs in {folder}.", folder=str(folder)))
    out.document([one | _written(RunFolder(folder / one["id"])) for one in found])
    return DONE


def _written(folder: RunFolder) -> dict[str, Any]:
    """What a run's manifest says: its last losses, its time, and every file with step, hash and losses."""
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
