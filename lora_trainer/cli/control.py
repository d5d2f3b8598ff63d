"""control RUN stop|pause|resume|save|sample, or control RUN change a.b=c..."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, run_folder, wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.control import CHANGE, COMMANDS
from lora_trainer.errors import TrainerError
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.jobs.folder import RunFolder


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    parser.add_argument("run", metavar="RUN", help=out.worded(say("a run's folder or name")))
    parser.add_argument("command", choices=(*COMMANDS, CHANGE), help=out.worded(say("what it is to do")))
    text = say("with change: settings and their new values, such as optimizer.learning_rate=1e-5")
    parser.add_argument("sets", nargs="*", metavar="a.b=c", help=out.worded(text))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes the command where the run looks between two steps."""
    folder = run_folder(args.run)
    if (outcome := folder.outcome()) is not None:
        raise TrainerError("the run {run} has ended ({outcome}).", run=folder.id, outcome=outcome, fix="Start a new one.")
    changes: list[dict[str, Any]] = []
    if args.command == CHANGE:
        changes = _changes(args.sets, folder)
        folder.change({change["path"]: change["new"] for change in changes})
        for change in changes:
            out.line(say("{path}: {old} becomes {new}.", **change))
    elif args.sets:
        raise wrong(args.sets[0], say("only `change` takes settings."), say("Leave it out, or write change."))
    else:
        folder.command(args.command)
    out.line(say("{command}: {run} does it after the step it is at.", command=args.command, run=folder.id))
    out.document({"run": str(folder.path), "command": args.command, **({"changes": changes} if changes else {})})
    return DONE


def _changes(sets: list[str], folder: RunFolder) -> list[dict[str, Any]]:
    """What is to be changed, looked at here: the run itself could only say so in its log."""
    from lora_trainer.api.runs.resume import check_change, wanted_by

    if not sets:
        raise wrong("change", say("no setting is given."), say("Write for example change optimizer.learning_rate=1e-5"))
    return check_change(folder, wanted_by(sets))
