"""prepare scan|cache ...: each in a module of its own"""

from __future__ import annotations

import argparse
import importlib
import importlib.util

from lora_trainer.cli.console import Console
from lora_trainer.messages import LANGUAGES, Message, say

PARTS: dict[str, Message] = {
    "scan": say("Look through a folder of pictures and say what to do, most useful first."),
    "cache": say("Show what is kept of encoded pictures, or delete it."),
}


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the parts and their words."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, description in PARTS.items():
        if importlib.util.find_spec(f"lora_trainer.cli.prepare.{name}") is None:
            continue
        part = parts.add_parser(name, help=out.worded(description), description=out.worded(description))
        part.add_argument("--lang", choices=LANGUAGES, help=out.worded(say("language of messages; else the system's")))
        importlib.import_module(f"lora_trainer.cli.prepare.{name}").arguments(part, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """The part that was asked for."""
    return int(importlib.import_module(f"lora_trainer.cli.prepare.{args.part}").run(args, out))
