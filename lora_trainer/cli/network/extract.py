"""network extract BASE TUNED --out FILE [--rank N] [--conv-rank N] [--energy X] [--unet-only] [--skip-rounding] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import finite_number, usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, add_precision, check_out, progress_printer
from lora_trainer.messages import Message, say


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("base", type=Path, metavar="BASE", help=console.translate(say("the checkpoint before training")))
    parser.add_argument("tuned", type=Path, metavar="TUNED", help=console.translate(say("the checkpoint after training")))
    parser.add_argument("--rank", type=int, default=32, metavar="N", help=console.translate(say("the highest rank of a layer")))
    conv = say("the highest rank of the U-Net's other layers; without: only attention layers")
    parser.add_argument("--conv-rank", type=int, default=0, metavar="N", help=console.translate(conv))
    energy = say("keep this share of each layer's singular values squared, 0 to 1")
    parser.add_argument("--energy", type=finite_number, default=1.0, metavar="X", help=console.translate(energy))
    parser.add_argument("--unet-only", action="store_true", help=console.translate(say("leave the text encoder out")))
    rounding = say("leave out layers that differ by rounding alone, as between float32 and bf16")
    parser.add_argument("--skip-rounding", action="store_true", help=console.translate(rounding))
    add_precision(parser, console, "fp16")
    add_out(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the difference and prints how much of it the file holds."""
    from lora_trainer.network_tools.extract import ExtractOptions, extract

    if args.rank < 1 or args.conv_rank < 0:
        raise usage_error("--rank", say("a rank is at least 1."), say("Write for example 16"))
    if not 0.0 < args.energy <= 1.0:
        raise usage_error("--energy", say("{value} is not between 0 and 1.", value=args.energy), say("Write for example 0.95"))
    target = check_out(args, [args.base, args.tuned])
    options = ExtractOptions(args.rank, args.conv_rank, args.energy, not args.unet_only, args.skip_rounding)
    show_progress = progress_printer(console, "{done} of {total} layers compared")
    extracted = extract(args.base, args.tuned, target, options, precision=args.precision, on_progress=show_progress)
    values = {"layers": extracted.layers, "unchanged": extracted.unchanged, "kept": f"{extracted.energy:.2%}"}
    console.line(say("{layers} layers differ, {unchanged} do not; {kept} of the differences' squares are in the file", **values))
    if extracted.rounding:
        console.note(_rounding_note(extracted.rounding, left_out=args.skip_rounding))
    console.line(say("Written to {path}", path=str(target)))
    facts = {
        "family": extracted.family,
        "layers": extracted.layers,
        "unchanged": extracted.unchanged,
        "rounding": extracted.rounding,
        "energy": extracted.energy,
        "ranks": extracted.ranks,
    }
    console.document({"out": str(target), **facts})
    return DONE


def _rounding_note(count: int, *, left_out: bool) -> Message:
    if left_out:
        return say("{count} layers differ by rounding alone and were left out", count=count)
    return say("Note: {count} layers differ by rounding alone; leave them out with --skip-rounding.", count=count)
