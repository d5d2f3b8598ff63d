"""network verify FILE [--family sd1|sd2|sdxl] [--model CHECKPOINT] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.console import DONE, FAILED, Console
from lora_trainer.config.choices.network_hosts import ALL, HOSTS
from lora_trainer.messages import say

SHOWN = 12


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("file", type=Path, metavar="FILE", help=out.worded(say("a LoRA or LyCORIS file")))
    parser.add_argument("--family", default="", metavar="NAME", help=out.worded(say("sd1, sd2 or sdxl; without: the file's own")))
    parser.add_argument(
        "--model", type=Path, metavar="CHECKPOINT", help=out.worded(say("compare with this checkpoint's layers and shapes"))
    )


def run(args: argparse.Namespace, out: Console) -> int:
    """Prints how many layers fit; 1 where one does not."""
    from lora_trainer.network_tools.verify import verify

    found = verify(args.file, family=args.family, model=args.model)
    values = {"kind": found.kind, "family": found.family, "matched": found.matched, "unmatched": len(found.unmatched)}
    out.line(say("{kind} for {family}: {matched} layers fit, {unmatched} do not", **values))
    for name, why in found.unmatched[:SHOWN]:
        out.line(f"  {name}: {out.worded(why)}")
    for host, loads, reason in found.hosts:
        word = {"all": say("reads it"), "partly": say("reads it in part"), "no": say("does not read it")}[loads]
        out.line(f"{HOSTS[host]}: {out.worded(word)}" + ("" if loads == ALL or reason is None else f" ({out.worded(reason)})"))
    out.document(found.to_json(out.language))
    return FAILED if found.unmatched else DONE
