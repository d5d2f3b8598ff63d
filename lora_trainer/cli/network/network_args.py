"""Arguments that several `network` subcommands share: the output file, its precision, NAME=VALUE pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_trainer.cli.common_args import usage_error
from lora_trainer.cli.console import Console
from lora_trainer.messages import say

PRECISIONS = ("float", "fp16", "bf16")


def add_out(parser: argparse.ArgumentParser, console: Console) -> None:
    """--out and --overwrite"""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=console.translate(say("the new file; what is read stays as it is"))
    )
    parser.add_argument("--overwrite", action="store_true", help=console.translate(say("replace the file if it exists already")))


def add_precision(parser: argparse.ArgumentParser, console: Console, default: str = "") -> None:
    """--precision"""
    text = say("number format of the new file; without: that of the one read") if not default else say("number format of the new file")
    parser.add_argument("--precision", choices=PRECISIONS, default=default, help=console.translate(text))


def check_out(args: argparse.Namespace, inputs: Sequence[Path]) -> Path:
    """The output path, checked before any work starts. Raises ConfigError."""
    from lora_trainer.network_tools.saving import check_target

    check_target(args.out, inputs, overwrite=args.overwrite)
    return Path(args.out)


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE texts as a dict. Raises ConfigError that names the option."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise usage_error(
                option, say("{text} is not of the form NAME=VALUE.", text=text), say("Write for example {option} mid=8", option=option)
            )
        pairs[name.strip()] = value.strip()
    return pairs


def progress_printer(console: Console, template: str) -> Callable[[int, int], None]:
    """A callback (done, total) that prints a line at every tenth of the work."""

    def tell(done: int, total: int) -> None:
        if done == total or done * 10 // total != (done - 1) * 10 // total:
            console.note(say(template, done=done, total=total))

    return tell
