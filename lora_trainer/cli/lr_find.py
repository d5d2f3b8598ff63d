"""lr-find CONFIG.toml [--steps N] [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import add_json, add_sets, host
from lora_trainer.cli.console import DONE, Console
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help=out.worded(say("the settings of the run")))
    parser.add_argument("--steps", type=int, default=100, metavar="N", help=out.worded(say("how many steps are trained and thrown away")))
    add_sets(parser, out)
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Prints {"unet_lr", "text_encoder_lr", "curve", "sure"}."""
    from lora_trainer.api.runs import start_run
    from lora_trainer.config.files import read_config
    from lora_trainer.control import Control
    from lora_trainer.wizard.lr_finder import find_rate

    own_host = host()
    config = start_run.placed(read_config(args.config, args.sets, out.note), own_host)
    found = find_rate(config, own_host, Control(), max(5, args.steps))
    result = found.to_json(config)
    out.line(f"optimizer.unet_lr = {result['unet_lr']:g}")
    out.line(f"optimizer.text_encoder_lr = {result['text_encoder_lr']:g}")
    out.line(say("For AdamW and its like; a third of it for Lion, 1 for Prodigy."))
    if not found.rests:
        out.note(
            say("The estimate was still growing after {steps} steps: take more steps, or take it as the least.", steps=len(found.curve))
        )
    out.document(result)
    return DONE
