"""network merge FILE[:WEIGHT] ... --out FILE [--into CHECKPOINT] [--rank N] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, add_precision, check_out, progress_printer
from lora_trainer.cli.sample import split_weight
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.network_tools.merge import WeightedNetwork


ARGUMENT = "FILE[:WEIGHT]"


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    files = say("files with their weights after a colon: FILE, FILE:0.8, or FILE:0.8:0.5 for the text encoder at 0.8 and the U-Net at 0.5")
    parser.add_argument("files", nargs="+", metavar=ARGUMENT, help=console.translate(files))
    parser.add_argument("--into", type=Path, metavar="CHECKPOINT", help=console.translate(say("add them into a copy of this checkpoint")))
    parser.add_argument(
        "--rank",
        type=int,
        default=0,
        metavar="N",
        help=console.translate(say("the highest rank of the sum; without: the rank that it has, so that nothing is lost")),
    )
    add_precision(parser, console)
    add_out(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the merged file and prints what it holds."""
    from lora_trainer.network_tools.merge import merge_into_checkpoint, merge_networks

    sources = [parse_weighted(text) for text in args.files]
    target = check_out(args, [*(source.path for source in sources), *([args.into] if args.into else [])])
    if args.rank < 0 or (args.rank and args.into):
        raise usage_error("--rank", say("a rank is for a merge into a network, and at least 1."), say("Leave --rank out, or --into."))
    if args.into:
        show_progress = progress_printer(console, "{done} of {total} tensors written")
        merged = merge_into_checkpoint(args.into, sources, target, precision=args.precision, on_progress=show_progress)
        console.line(say("{layers} layers of the checkpoint were changed", layers=merged.layers))
        if merged.left_out:
            values = {"count": len(merged.left_out), "name": merged.left_out[0]}
            console.note(say("Note: {count} layers are in no model of the family and were left out, the first is {name}.", **values))
    else:
        merged = merge_networks(sources, target, rank=args.rank, precision=args.precision)
        values = {"layers": merged.layers, "rank": merged.rank, "kept": f"{merged.energy:.2%}"}
        console.line(say("{layers} layers, rank {rank}; {kept} of the squares of the singular values are kept", **values))
    console.line(say("Written to {path}", path=str(target)))
    console.document(
        {"out": str(target), "layers": merged.layers, "rank": merged.rank, "energy": merged.energy, "left_out": list(merged.left_out)}
    )
    return DONE


def parse_weighted(text: str) -> WeightedNetwork:
    """FILE, FILE:WEIGHT, or FILE:TEXT:UNET, in the order of the WebUI's prompt. Raises ConfigError if a weight is not a number."""
    from lora_trainer.network_tools.merge import WeightedNetwork

    rest, last = split_weight(text, ARGUMENT)
    if str(rest) == text:
        return WeightedNetwork(rest)
    path, first = split_weight(str(rest), ARGUMENT)
    return WeightedNetwork(path, last, last) if path == rest else WeightedNetwork(path, unet=last, text=first)
