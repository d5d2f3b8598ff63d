"""lr-find CONFIG.toml [--steps N] [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import add_json, add_overrides, host
from lora_trainer.cli.console import DONE, Console
from lora_trainer.messages import say


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help=console.translate(say("the settings of the run")))
    parser.add_argument(
        "--steps", type=int, default=100, metavar="N", help=console.translate(say("how many steps are trained and thrown away"))
    )
    add_overrides(parser, console)
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints {"unet_lr", "text_encoder_lr", "curve", "sure"}."""
    from lora_trainer.api.runs import start_run
    from lora_trainer.config.files import read_config
    from lora_trainer.control import Control
    from lora_trainer.wizard.lr_finder import find_rate

    own_host = host()
    config = start_run.resolve_paths(read_config(args.config, args.overrides, console.note), own_host)
    estimate = find_rate(config, own_host, Control(), max(5, args.steps))
    result = estimate.to_json(config)
    console.line(f"optimizer.unet_lr = {result['unet_lr']:g}")
    console.line(f"optimizer.text_encoder_lr = {result['text_encoder_lr']:g}")
    console.line(say("For AdamW and its like; a third of it for Lion, 1 for Prodigy."))
    if not estimate.has_plateau:
        console.note(
            say("The estimate was still growing after {steps} steps: take more steps, or take it as the least.", steps=len(estimate.curve))
        )
    console.document(result)
    return DONE
