"""network verify FILE [--family sd1|sd2|sdxl] [--model CHECKPOINT] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.console import DONE, FAILED, Console
from lora_trainer.config.choices.network_hosts import ALL, HOSTS
from lora_trainer.messages import say

SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("file", type=Path, metavar="FILE", help=console.translate(say("a LoRA or LyCORIS file")))
    parser.add_argument("--family", default="", metavar="NAME", help=console.translate(say("sd1, sd2 or sdxl; without: the file's own")))
    parser.add_argument(
        "--model", type=Path, metavar="CHECKPOINT", help=console.translate(say("compare with this checkpoint's layers and shapes"))
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints how many layers fit; exit status 1 if one does not."""
    from lora_trainer.network_tools.verify import verify

    report = verify(args.file, family=args.family, model=args.model)
    values = {"kind": report.kind, "family": report.family, "matched": report.matched, "unmatched": len(report.unmatched)}
    console.line(say("{kind} for {family}: {matched} layers fit, {unmatched} do not", **values))
    for name, why in report.unmatched[:SHOWN]:
        console.line(f"  {name}: {console.translate(why)}")
    for host, loads, reason in report.hosts:
        word = {"all": say("reads it"), "partly": say("reads it in part"), "no": say("does not read it")}[loads]
        console.line(
            f"{HOSTS[host]}: {console.translate(word)}" + ("" if loads == ALL or reason is None else f" ({console.translate(reason)})")
        )
    for note in report.notes:
        console.note(say("Note: {message}", message=note))
    console.document(report.to_json(console.language))
    return FAILED if report.unmatched else DONE
