"""From the command line to a verb, and from its result to an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from lora_trainer import __version__
from lora_trainer.cli.console import DONE, FAILED, STOPPED, USAGE_ERROR, Console, choose_language, prepare_streams, silence_stdout
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.messages import Message, say

VERBS: dict[str, Message] = {
    "demo": say("Train a small model on twelve pictures, draw samples and the grid: no GPU needed."),
    "train": say("Train as a config says."),
    "check": say("Say what would happen: steps, groups, memory, problems. Trains nothing."),
    "import": say("Bring settings of another trainer into this one's form; every key is taken, or listed with the reason."),
    "prepare": say("Look through pictures before training."),
    "wizard": say("Suggest settings for pictures, subject and card, each with its reason."),
    "lr-find": say("Find a learning rate: a short run looks for it and is thrown away."),
    "sample": say("Draw a picture with a model and LoRA files."),
    "grid": say("Draw a run's epochs by weights and say which is best."),
    "network": say("Look at a trained file, or make another of it: info, verify, resize, merge, extract, convert, edit."),
    "control": say("Stop, pause, resume, save or preview a run that goes on."),
    "runs": say("List the runs."),
    "ui": say("Open the tab in a browser, without a WebUI."),
}

MODULES = {"import": "importing", "lr-find": "lr_find"}
"""Verbs whose module has another name: theirs is not a valid one."""


class Parser(argparse.ArgumentParser):
    """ArgumentParser with exit status 2 and without abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"{message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. Exit status: 0 done, 1 failed, 2 wrong usage or config, 130 stopped by the user."""
    prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(choose_language(words))
    try:
        args = build_parser(console).parse_args(words)
        console.as_json = getattr(args, "json", False)
        code = _run(args, console)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        return DONE
    return code


def _run(args: argparse.Namespace, console: Console) -> int:
    try:
        return int(_verb_module(args.verb).run(args, console))
    except TrainerError as error:
        console.problems(error.problems)
        console.document({"problems": [problem.to_json(console.language) for problem in error.problems]})
        return USAGE_ERROR if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        console.note(say("Aborted."))
        return STOPPED
    except BrokenPipeError:
        raise
    except Exception as error:
        from lora_trainer.jobs.job import problems_of

        traceback.print_exc()
        problems = problems_of(error, in_run=False)
        console.problems(problems)
        console.document({"problems": [problem.to_json(console.language) for problem in problems]})
        return FAILED


def build_parser(console: Console) -> Parser:
    """The parser for all verbs."""
    top = Parser(prog="lora_trainer", description=console.translate(say("Train LoRA for Stable Diffusion.")))
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, description in VERBS.items():
        verb = verbs.add_parser(name, help=console.translate(description), description=console.translate(description))
        verb.add_argument("--lang", choices=("en", "zh_CN"), help=console.translate(say("language of messages; else the system's")))
        _verb_module(name).add_arguments(verb, console)
    return top


def _verb_module(verb: str) -> Any:
    return importlib.import_module(f"lora_trainer.cli.{MODULES.get(verb, verb)}")


def as_usage_error(error: TrainerError) -> ConfigError:
    """The same problems as wrong usage (exit status 2), for errors before any work started."""
    return ConfigError(error.problems)
