"""network resize FILE --out FILE [--rank N] [--conv-rank N] [--energy X] [--block NAME=N]... [--cut] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import finite_number, usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, add_precision, check_out, parse_pairs
from lora_trainer.messages import say


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("file", type=Path, metavar="FILE", help=console.translate(say("a LoRA or LyCORIS file")))
    parser.add_argument("--rank", type=int, default=0, metavar="N", help=console.translate(say("the highest rank of a layer")))
    parser.add_argument(
        "--conv-rank", type=int, default=0, metavar="N", help=console.translate(say("that of convolutions; without: the same"))
    )
    energy = say("keep this share of each layer's singular values squared, 0 to 1")
    parser.add_argument("--energy", type=finite_number, default=1.0, metavar="X", help=console.translate(energy))
    block = say('the rank of one block, such as "up 1=8", "mid=4", "text 0=2"; can be repeated')
    parser.add_argument("--block", action="append", default=[], metavar="NAME=N", help=console.translate(block))
    cut = say("take the first ranks as they are: for DyLoRA")
    parser.add_argument("--cut", action="store_true", help=console.translate(cut))
    add_precision(parser, console)
    add_out(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the resized file and prints what was lost."""
    from lora_trainer.network_tools.resize import ResizeOptions, resize

    if not (args.rank or args.block or args.conv_rank or args.energy < 1.0):
        raise usage_error("--rank", say("neither a rank nor an energy is given."), say("Add --rank 16, or --energy 0.95"))
    if not 0.0 < args.energy <= 1.0:
        raise usage_error("--energy", say("{value} is not between 0 and 1.", value=args.energy), say("Write for example 0.95"))
    if min(args.rank, args.conv_rank) < 0:
        raise usage_error("--rank", say("a rank is at least 1."), say("Write for example 16"))
    try:
        blocks = {name: int(value) for name, value in parse_pairs(args.block, "--block").items()}
    except ValueError:
        raise usage_error("--block", say("a rank is a whole number."), say('Write for example --block "up 1=8"')) from None
    target = check_out(args, [args.file])
    options = ResizeOptions(args.rank or 1 << 16, args.energy, args.conv_rank, blocks, args.cut)
    resized = resize(args.file, target, options, precision=args.precision)
    whole = sum(layer.norm**2 for layer in resized)
    kept = 1.0 - sum(layer.residual_norm**2 for layer in resized) / whole if whole else 1.0
    before, after = [[getattr(layer, name) for layer in resized if layer.before] for name in ("before", "after")]
    values = {"before": _range(before), "after": _range(after), "kept": f"{kept:.2%}"}
    console.line(say("rank {before} became {after}; {kept} of the squares of the singular values are kept", **values))
    console.line(say("Written to {path}", path=str(target)))
    layers = [
        {
            "name": layer.name,
            "before": layer.before,
            "after": layer.after,
            "energy": layer.energy,
            "lost": layer.residual_norm,
            "whole": layer.norm,
        }
        for layer in resized
    ]
    console.document({"out": str(target), "energy": kept, "layers": layers})
    return DONE


def _range(values: list[int]) -> str:
    if not values:
        return "-"
    return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"
