"""network convert FILE --to kohya|diffusers|peft --out FILE [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, ready
from lora_trainer.messages import say
from lora_trainer.network_tools.naming import NAMINGS


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("file", type=Path, metavar="FILE", help=out.worded(say("a LoRA file")))
    to = say("whose names: kohya (sd-scripts', which WebUIs read), diffusers or peft")
    parser.add_argument("--to", required=True, choices=NAMINGS, help=out.worded(to))
    add_out(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes the file under other names."""
    from lora_trainer.network_tools.convert import convert

    target = ready(args, [args.file])
    found = convert(args.file, target, args.to)
    values = {"count": len(found.modules), "before": found.naming, "after": args.to}
    out.line(say("{count} layers, from {before} names to {after} names", **values))
    out.line(say("Written to {path}", path=str(target)))
    out.document({"out": str(target), "from": found.naming, "to": args.to, "layers": len(found.modules), "family": found.family})
    return DONE
