"""runs [--dir DIR] [--json]"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from lora_trainer.cli.asked import add_json, host
from lora_trainer.cli.out import DONE, Out
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Out) -> None:
    """Adds the verb's words."""
    parser.add_argument("--dir", type=Path, metavar="DIR", help=out.worded(say("the folder of runs; without: ./runs")))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Out) -> int:
    """Lists the runs, newest first."""
    from lora_trainer.jobs.manager import JobManager

    folder = args.dir or host().paths().runs_dir
    found = JobManager().history(folder)
    for one in found:
        begun = datetime.fromtimestamp(one["started"]).strftime("%Y-%m-%d %H:%M") if one["started"] else ""
        out.line(f"{one['state']:<12} {begun:<16}  {one['step']:>6} / {one['total_steps']:<6}  {one['name']}")
    if not found:
        out.line(say("No runs in {folder}.", folder=str(folder)))
    out.document(found)
    return DONE
