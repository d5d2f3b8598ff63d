"""network extract BASE TUNED --out FILE [--rank N] [--conv-rank N] [--energy X] [--unet-only] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, add_precision, ready, steps
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("base", type=Path, metavar="BASE", help=out.worded(say("the checkpoint before training")))
    parser.add_argument("tuned", type=Path, metavar="TUNED", help=out.worded(say("the checkpoint after training")))
    parser.add_argument("--rank", type=int, default=32, metavar="N", help=out.worded(say("the highest rank of a layer")))
    conv = say("the highest rank of the U-Net's other layers; without: only attention layers")
    parser.add_argument("--conv-rank", type=int, default=0, metavar="N", help=out.worded(conv))
    energy = say("keep this share of each layer's singular values squared, 0 to 1")
    parser.add_argument("--energy", type=float, default=1.0, metavar="X", help=out.worded(energy))
    parser.add_argument("--unet-only", action="store_true", help=out.worded(say("leave the text encoder out")))
    add_precision(parser, out, "fp16")
    add_out(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes the difference and says how much of it the file holds."""
    from lora_trainer.network_tools.extract import Extracting, extract

    if args.rank < 1 or args.conv_rank < 0:
        raise wrong("--rank", say("a rank is at least 1."), say("Write for example 16"))
    if not 0.0 < args.energy <= 1.0:
        raise wrong("--energy", say("{value} is not between 0 and 1.", value=args.energy), say("Write for example 0.95"))
    target = ready(args, [args.base, args.tuned])
    wanted = Extracting(args.rank, args.conv_rank, args.energy, not args.unet_only)
    told = steps(out, "{done} of {total} layers compared")
    found = extract(args.base, args.tuned, target, wanted, precision=args.precision, tell=told)
    values = {"layers": found.layers, "unchanged": found.unchanged, "kept": f"{found.energy:.2%}"}
    out.line(say("{layers} layers differ, {unchanged} do not; {kept} of the differences' squares are in the file", **values))
    out.line(say("Written to {path}", path=str(target)))
    shown = {"family": found.family, "layers": found.layers, "unchanged": found.unchanged, "energy": found.energy, "ranks": found.ranks}
    out.document({"out": str(target), **shown})
    return DONE
