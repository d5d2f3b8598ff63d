"""network info FILE [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_trainer.cli.console import DONE, Console
from lora_trainer.messages import say

WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("file", type=Path, metavar="FILE", help=console.translate(say("a LoRA or LyCORIS file")))


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the facts about the file."""
    from lora_trainer.network_tools.info import info

    facts = info(args.file)
    print_info(facts, console)
    console.document(facts)
    return DONE


def print_info(info: dict[str, Any], console: Console) -> None:
    """Prints the facts, one per line."""
    values = {"kind": info["kind"], "family": info["family_label"], "dtype": info["dtype"], "mb": round(info["bytes"] / 1e6, 1)}
    console.line(say("{kind} for {family}, {dtype}, {mb} MB", **values))
    for part, count in info["modules"].items():
        console.line(say("{part}: {count} layers", part=part, count=count))
    for name, rows in ((say("rank"), info["ranks"]), (say("alpha"), info["alphas"])):
        if rows:
            shown = ", ".join(f"{row['value']:g} x {row['modules']}" for row in rows[:8])
            console.line(say("{name}: {shown}", name=name, shown=shown))
    if info["alphas_from"]:
        console.line(say("alphas read from {source}", source=info["alphas_from"]))
    if info["without_alpha"]:
        console.line(say("{count} layers have no alpha anywhere: their strength is 1", count=info["without_alpha"]))
    most = max((row["norm"] for row in info["blocks"]), default=0.0) or 1.0
    if info["blocks"]:
        console.line(say("strength by block (Frobenius norm of what is added):"))
    for row in info["blocks"]:
        console.line(f"  {row['block']:<10} {row['norm']:10.4f} {'#' * round(row['norm'] / most * WIDTH)}")
    if info["norm"] is None:
        console.line(say("How much it adds depends on the model's weights."))
    for key, value in info["trained_on"].items():
        console.line(f"  {key} = {_short(value)}")
    hashes = info["hashes"]
    console.line(say("hash in WebUI: {webui}; sha256 {sha256}", webui=hashes["webui"], sha256=hashes["sha256"]))
    if not hashes["as_said"]:
        console.note(say("Note: the tensors are not those that the header's hash was made of."))
    if info["unknown"]:
        console.note(
            say("Note: {count} layers are in no known model, the first is {name}.", count=len(info["unknown"]), name=info["unknown"][0])
        )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{row['tag']} ({row['count']})" for row in value)
    if isinstance(value, dict):
        return ", ".join(str(key) for key in value)
    return str(value)
