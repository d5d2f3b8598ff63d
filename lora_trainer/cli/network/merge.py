"""network merge FILE[:WEIGHT] ... --out FILE [--into CHECKPOINT] [--rank N] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, add_precision, ready, steps
from lora_trainer.cli.sample import split_weight
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.network_tools.merge import Weighted


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    files = say("files with their weights behind a colon: FILE, FILE:0.8, or FILE:0.8:0.5 for the text encoder at 0.8 and the U-Net at 0.5")
    parser.add_argument("files", nargs="+", metavar="FILE[:WEIGHT]", help=out.worded(files))
    parser.add_argument("--into", type=Path, metavar="CHECKPOINT", help=out.worded(say("add them into a copy of this checkpoint")))
    parser.add_argument(
        "--rank", type=int, default=0, metavar="N", help=out.worded(say("the highest rank of the sum; without: nothing is lost"))
    )
    add_precision(parser, out)
    add_out(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes the sum and says what it holds."""
    from lora_trainer.network_tools.merge import merge_into_checkpoint, merge_networks

    sources = [weighted(text) for text in args.files]
    target = ready(args, [*(source.path for source in sources), *([args.into] if args.into else [])])
    if args.rank < 0 or (args.rank and args.into):
        raise wrong("--rank", say("a rank is for a merge into a network, and at least 1."), say("Leave --rank out, or --into."))
    if args.into:
        told = steps(out, "{done} of {total} tensors written")
        found = merge_into_checkpoint(args.into, sources, target, precision=args.precision, tell=told)
        out.line(say("{layers} layers of the checkpoint were changed", layers=found.layers))
    else:
        found = merge_networks(sources, target, rank=args.rank, precision=args.precision)
        values = {"layers": found.layers, "rank": found.rank, "kept": f"{found.energy:.2%}"}
        out.line(say("{layers} layers, rank {rank}; {kept} of the squares of the singular values are kept", **values))
    out.line(say("Written to {path}", path=str(target)))
    out.document({"out": str(target), "layers": found.layers, "rank": found.rank, "energy": found.energy})
    return DONE


def weighted(text: str) -> Weighted:
    """FILE, FILE:WEIGHT, or FILE:TEXT:UNET, in the order of the WebUI's prompt. Raises ConfigError for a weight that is no number."""
    from lora_trainer.network_tools.merge import Weighted

    rest, last = split_weight(text)
    if str(rest) == text:
        return Weighted(rest)
    path, first = split_weight(str(rest))
    return Weighted(path, last, last) if path == rest else Weighted(path, unet=last, text=first)
