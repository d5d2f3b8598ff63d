"""network convert FILE --to kohya|diffusers|peft --out FILE [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.adapters.files.naming import NAMINGS
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, check_out
from lora_trainer.messages import say


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("file", type=Path, metavar="FILE", help=console.translate(say("a LoRA file")))
    to = say("whose names: kohya (sd-scripts', which WebUIs read), diffusers or peft")
    parser.add_argument("--to", required=True, choices=NAMINGS, help=console.translate(to))
    add_out(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the file under other names."""
    from lora_trainer.network_tools.convert import convert

    target = check_out(args, [args.file])
    converted = convert(args.file, target, args.to)
    values = {"count": len(converted.modules), "before": converted.naming, "after": args.to}
    console.line(say("{count} layers, from {before} names to {after} names", **values))
    console.line(say("Written to {path}", path=str(target)))
    console.document(
        {"out": str(target), "from": converted.naming, "to": args.to, "layers": len(converted.modules), "family": converted.family}
    )
    return DONE
