"""What several parts of `network` ask for: the file to write, its number format, weights and ranks behind names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_trainer.cli.common_args import wrong
from lora_trainer.cli.console import Console
from lora_trainer.messages import say

PRECISIONS = ("float", "fp16", "bf16")


def add_out(parser: argparse.ArgumentParser, out: Console) -> None:
    """--out and --overwrite"""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=out.worded(say("the new file; what is read stays as it is"))
    )
    parser.add_argument("--overwrite", action="store_true", help=out.worded(say("replace the file where it is there already")))


def add_precision(parser: argparse.ArgumentParser, out: Console, default: str = "") -> None:
    """--precision"""
    text = say("number format of the new file; without: that of the one read") if not default else say("number format of the new file")
    parser.add_argument("--precision", choices=PRECISIONS, default=default, help=out.worded(text))


def ready(args: argparse.Namespace, inputs: Sequence[Path]) -> Path:
    """The file to write, looked at before any work begins. Raises ConfigError."""
    from lora_trainer.network_tools.saving import check_target

    check_target(args.out, inputs, overwrite=args.overwrite)
    return Path(args.out)


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE of each. Raises ConfigError that names the option."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise wrong(
                option, say("{text} is not of the form NAME=VALUE.", text=text), say("Write for example {option} mid=8", option=option)
            )
        found[name.strip()] = value.strip()
    return found


def steps(out: Console, template: str) -> Callable[[int, int], None]:
    """Tells of every tenth of a long work."""

    def tell(done: int, total: int) -> None:
        if done == total or done * 10 // total != (done - 1) * 10 // total:
            out.note(say(template, done=done, total=total))

    return tell
