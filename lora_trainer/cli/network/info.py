"""network info FILE [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_trainer.cli.console import DONE, Console
from lora_trainer.messages import say

WIDTH = 40


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("file", type=Path, metavar="FILE", help=out.worded(say("a LoRA or LyCORIS file")))


def run(args: argparse.Namespace, out: Console) -> int:
    """Prints what the file is."""
    from lora_trainer.network_tools.info import info

    found = info(args.file)
    tell(found, out)
    out.document(found)
    return DONE


def tell(found: dict[str, Any], out: Console) -> None:
    """The facts in lines."""
    values = {"kind": found["kind"], "family": found["family_label"], "dtype": found["dtype"], "mb": round(found["bytes"] / 1e6, 1)}
    out.line(say("{kind} for {family}, {dtype}, {mb} MB", **values))
    for part, count in found["modules"].items():
        out.line(say("{part}: {count} layers", part=part, count=count))
    for name, rows in ((say("rank"), found["ranks"]), (say("alpha"), found["alphas"])):
        if rows:
            shown = ", ".join(f"{row['value']:g} x {row['modules']}" for row in rows[:8])
            out.line(say("{name}: {shown}", name=name, shown=shown))
    most = max((row["norm"] for row in found["blocks"]), default=0.0) or 1.0
    if found["blocks"]:
        out.line(say("strength by block (Frobenius norm of what is added):"))
    for row in found["blocks"]:
        out.line(f"  {row['block']:<10} {row['norm']:10.4f} {'#' * round(row['norm'] / most * WIDTH)}")
    if found["norm"] is None:
        out.line(say("How much it adds depends on the model's weights."))
    for key, value in found["trained_on"].items():
        out.line(f"  {key} = {_short(value)}")
    hashes = found["hashes"]
    out.line(say("hash in WebUI: {webui}; sha256 {sha256}", webui=hashes["webui"], sha256=hashes["sha256"]))
    if not hashes["as_said"]:
        out.note(say("Note: the tensors are not those that the header's hash was made of."))
    if found["unknown"]:
        out.note(
            say("Note: {count} layers are in no known model, the first is {name}.", count=len(found["unknown"]), name=found["unknown"][0])
        )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{row['tag']} ({row['count']})" for row in value)
    if isinstance(value, dict):
        return ", ".join(str(key) for key in value)
    return str(value)
