"""prepare scan|cache ...: each in its own module"""

from __future__ import annotations

import argparse
import importlib

from lora_trainer.cli.console import Console
from lora_trainer.messages import LANGUAGES, Message, say

PARTS: dict[str, Message] = {
    "scan": say("Look through a folder of pictures and say what to do, most useful first."),
    "cache": say("Show what is kept of encoded pictures, or delete it."),
}


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the subcommands and their arguments."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, description in PARTS.items():
        part = parts.add_parser(name, help=console.translate(description), description=console.translate(description))
        part.add_argument("--lang", choices=LANGUAGES, help=console.translate(say("language of messages; else the system's")))
        importlib.import_module(f"lora_trainer.cli.prepare.{name}").add_arguments(part, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the chosen subcommand."""
    return int(importlib.import_module(f"lora_trainer.cli.prepare.{args.part}").run(args, console))
