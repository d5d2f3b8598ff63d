"""control RUN stop|pause|resume|save|sample"""

from __future__ import annotations

import argparse

from lora_trainer.cli.asked import add_json, run_folder
from lora_trainer.cli.out import DONE, Out
from lora_trainer.control import COMMANDS
from lora_trainer.errors import TrainerError
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Out) -> None:
    """Adds the verb's words."""
    parser.add_argument("run", metavar="RUN", help=out.worded(say("a run's folder or name")))
    parser.add_argument("command", choices=COMMANDS, help=out.worded(say("what it is to do")))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Out) -> int:
    """Writes the command where the run looks between two steps."""
    folder = run_folder(args.run)
    if (outcome := folder.outcome()) is not None:
        raise TrainerError("the run {run} has ended ({outcome}).", run=folder.id, outcome=outcome, fix="Start a new one.")
    folder.command(args.command)
    out.line(say("{command}: {run} does it after the step it is at.", command=args.command, run=folder.id))
    out.document({"run": str(folder.path), "command": args.command})
    return DONE
