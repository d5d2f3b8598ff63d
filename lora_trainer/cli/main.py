"""Words of the command line to a verb, and however it ends to an exit status."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from lora_trainer import __version__
from lora_trainer.cli.console import DONE, FAILED, STOPPED, WRONG, Console, language_of, prepare_streams, quiet_pipe
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
"""Verbs whose module cannot have their name."""


class Parser(argparse.ArgumentParser):
    """argparse with exit status 2 and without guessing at shortened words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(WRONG, f"{message}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Runs a verb. 0 done, 1 the work failed, 2 wrong usage or config, 130 stopped by the user."""
    prepare_streams()
    given = list(sys.argv[1:] if words is None else words)
    out = Console(language_of(given))
    try:
        args = parser(out).parse_args(given)
        out.as_json = getattr(args, "json", False)
        code = _run(args, out)
        sys.stdout.flush()
    except BrokenPipeError:
        quiet_pipe()
        return DONE
    return code


def _run(args: argparse.Namespace, out: Console) -> int:
    try:
        return int(_module(args.verb).run(args, out))
    except TrainerError as error:
        out.problems(error.problems)
        out.document({"problems": [problem.to_json(out.language) for problem in error.problems]})
        return WRONG if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        out.note(say("Aborted."))
        return STOPPED
    except BrokenPipeError:
        raise
    except Exception as error:
        from lora_trainer.jobs.job import problems_of

        traceback.print_exc()
        out.problems(problems_of(error))
        out.document({"problems": [problem.to_json(out.language) for problem in problems_of(error)]})
        return FAILED


def parser(out: Console) -> Parser:
    """The parser of all verbs."""
    top = Parser(prog="lora_trainer", description=out.worded(say("Train LoRA for Stable Diffusion.")))
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, description in VERBS.items():
        verb = verbs.add_parser(name, help=out.worded(description), description=out.worded(description))
        verb.add_argument("--lang", choices=("en", "zh_CN"), help=out.worded(say("language of messages; else the system's")))
        _module(name).arguments(verb, out)
    return top


def _module(verb: str) -> Any:
    return importlib.import_module(f"lora_trainer.cli.{MODULES.get(verb, verb)}")


def as_wrong_usage(error: TrainerError) -> ConfigError:
    """The same problems as a matter of what was asked for (exit status 2): found before any work began."""
    return ConfigError(error.problems)
