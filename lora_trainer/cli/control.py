"""control RUN stop|pause|resume|save|sample, or control RUN change a.b=c..."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, find_run, usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.control import CHANGE, COMMANDS
from lora_trainer.errors import TrainerError
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.jobs.folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("run", metavar="RUN", help=console.translate(say("a run's folder or name")))
    parser.add_argument("command", choices=(*COMMANDS, CHANGE), help=console.translate(say("what it is to do")))
    text = say("with change: settings and their new values, such as optimizer.learning_rate=1e-5")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=console.translate(text))
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the command to the run's control file, which it reads between two steps."""
    folder = find_run(args.run)
    if (outcome := folder.outcome()) is not None:
        raise TrainerError("the run {run} has ended ({outcome}).", run=folder.id, outcome=outcome, fix="Start a new one.")
    changes: list[dict[str, Any]] = []
    if args.command == CHANGE:
        changes = _changes(args.overrides, folder)
        folder.change({change["path"]: change["new"] for change in changes})
        for change in changes:
            console.line(say("{path}: {old} becomes {new}.", **change))
    elif args.overrides:
        raise usage_error(args.overrides[0], say("only `change` takes settings."), say("Leave it out, or write change."))
    else:
        folder.command(args.command)
    console.line(say("{command}: {run} does it after the step it is at.", command=args.command, run=folder.id))
    console.document({"run": str(folder.path), "command": args.command, **({"changes": changes} if changes else {})})
    return DONE


def _changes(overrides: list[str], folder: RunFolder) -> list[dict[str, Any]]:
    """The changes, checked here: the run itself could report an error only in its log."""
    from lora_trainer.api.runs.resume import changes_from_sets, check_change

    if not overrides:
        raise usage_error("change", say("no setting is given."), say("Write for example change optimizer.learning_rate=1e-5"))
    return check_change(folder, changes_from_sets(overrides))
