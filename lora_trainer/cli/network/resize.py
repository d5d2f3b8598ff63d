"""network resize FILE --out FILE [--rank N] [--conv-rank N] [--energy X] [--block NAME=N]... [--cut] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, add_precision, pairs, ready
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("file", type=Path, metavar="FILE", help=out.worded(say("a LoRA or LyCORIS file")))
    parser.add_argument("--rank", type=int, default=0, metavar="N", help=out.worded(say("the highest rank of a layer")))
    parser.add_argument("--conv-rank", type=int, default=0, metavar="N", help=out.worded(say("that of convolutions; without: the same")))
    energy = say("keep this share of each layer's singular values squared, 0 to 1")
    parser.add_argument("--energy", type=float, default=1.0, metavar="X", help=out.worded(energy))
    block = say('the rank of one block, such as "up 1=8", "mid=4", "text 0=2"; as often as wanted')
    parser.add_argument("--block", action="append", default=[], metavar="NAME=N", help=out.worded(block))
    cut = say("take the first ranks as they are: for DyLoRA")
    parser.add_argument("--cut", action="store_true", help=out.worded(cut))
    add_precision(parser, out)
    add_out(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes the file and says what was lost."""
    from lora_trainer.network_tools.resize import Resizing, resize

    if not (args.rank or args.block or args.conv_rank or args.energy < 1.0):
        raise wrong("--rank", say("neither a rank nor an energy is given."), say("Add --rank 16, or --energy 0.95"))
    if not 0.0 < args.energy <= 1.0:
        raise wrong("--energy", say("{value} is not between 0 and 1.", value=args.energy), say("Write for example 0.95"))
    if min(args.rank, args.conv_rank) < 0:
        raise wrong("--rank", say("a rank is at least 1."), say("Write for example 16"))
    try:
        blocks = {name: int(value) for name, value in pairs(args.block, "--block").items()}
    except ValueError:
        raise wrong("--block", say("a rank is a whole number."), say('Write for example --block "up 1=8"')) from None
    target = ready(args, [args.file])
    wanted = Resizing(args.rank or 1 << 16, args.energy, args.conv_rank, blocks, args.cut)
    told = resize(args.file, target, wanted, precision=args.precision)
    whole = sum(line.whole**2 for line in told)
    kept = 1.0 - sum(line.lost**2 for line in told) / whole if whole else 1.0
    before, after = [[getattr(line, name) for line in told if line.before] for name in ("before", "after")]
    values = {"before": _range(before), "after": _range(after), "kept": f"{kept:.2%}"}
    out.line(say("rank {before} became {after}; {kept} of the squares of the singular values are kept", **values))
    out.line(say("Written to {path}", path=str(target)))
    layers = [
        {"name": line.name, "before": line.before, "after": line.after, "energy": line.energy, "lost": line.lost, "whole": line.whole}
        for line in told
    ]
    out.document({"out": str(target), "energy": kept, "layers": layers})
    return DONE


def _range(values: list[int]) -> str:
    if not values:
        return "-"
    return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"
