"""network info|verify|resize|merge|extract|convert|edit ...: each in its own module"""

from __future__ import annotations

import argparse
import importlib

from lora_trainer.cli.common_args import add_json
from lora_trainer.cli.console import Console
from lora_trainer.messages import LANGUAGES, Message, say

PARTS: dict[str, Message] = {
    "info": say("Say what a trained file is: kind, family, ranks, strength by block, what it was trained on."),
    "verify": say("Compare a file's layers with a model's, and say which WebUI reads it."),
    "resize": say("Write a file at another rank."),
    "merge": say("Add files up, each with its weight, into one file or into a checkpoint."),
    "extract": say("Write the difference of two checkpoints as a LoRA."),
    "convert": say("Write a file under other names: sd-scripts', diffusers' or PEFT's."),
    "edit": say("Write a file with other words in its header, a trigger or a preview."),
}


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the subcommands and their arguments."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, description in PARTS.items():
        part = parts.add_parser(name, help=console.translate(description), description=console.translate(description))
        part.add_argument("--lang", choices=LANGUAGES, help=console.translate(say("language of messages; else the system's")))
        importlib.import_module(f"lora_trainer.cli.network.{name}").add_arguments(part, console)
        add_json(part, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the chosen subcommand."""
    return int(importlib.import_module(f"lora_trainer.cli.network.{args.part}").run(args, console))
