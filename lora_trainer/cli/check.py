"""check CONFIG.toml [--show DIR] [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, add_sets, host
from lora_trainer.cli.console import DONE, WRONG, Console
from lora_trainer.errors import ConfigError
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig


PREDICTIONS = {"epsilon": say("the noise"), "v": "v"}


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help=out.worded(say("the settings of the run")))
    parser.add_argument(
        "--show", type=Path, metavar="DIR", help=out.worded(say("draws the first batches as they will be trained: cut, mask, caption"))
    )
    add_sets(parser, out)
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Prints the plan; 2 when something stands in the way of the run."""
    from lora_trainer.api.runs import plans
    from lora_trainer.config.files import read_config

    shown: dict[str, Any] = {}
    try:
        config = read_config(args.config, args.sets, out.note)
        found = plans.check(config, host())
        if args.show and found["images"]:
            shown = {"shown": _show(config, args.show, out)}
    except ConfigError as error:
        found = {**plans.EMPTY_PLAN, "problems": error.problems, "warnings": []}
    problems, model = found["problems"], found.get("model")
    if model:
        out.line(worded_badge(model))
    if found["images"]:
        tell_plan(found, out)
    for warning in found["warnings"]:
        out.note(say("Note: {message}", message=warning["message"]))
    out.problems(problems)
    out.document(
        found
        | shown
        | {"model": model and {name: _told(value, out) for name, value in model.items()}}
        | {"problems": [problem.to_json(out.language) for problem in problems]}
        | {
            "warnings": [
                {**warning, "message": out.worded(warning["message"]), "fix": out.worded(warning["fix"])} for warning in found["warnings"]
            ]
        }
    )
    return WRONG if problems else DONE


def _show(config: TrainConfig, folder: Path, out: Console) -> dict[str, Any]:
    """The first batches as a sheet and as JSON in `folder`."""
    from lora_trainer.api.dataset_reports import shown as show_batches
    from lora_trainer.api.runs.plans import pictures_of

    shown = show_batches(config, pictures_of(config), folder, out.language)
    for file in shown["files"]:
        out.line(file)
    return shown


def _told(value: Any, out: Console) -> Any:
    """The value as JSON holds it."""
    if isinstance(value, list):
        return [_told(part, out) for part in value]
    return out.worded(value) if isinstance(value, Message) else value


def worded_badge(model: dict[str, Any]) -> Message:
    """The model in one line, with the reason why it is taken for that."""
    template = (
        "{title}: {label}, predicts {prediction}, zero terminal SNR, {size} pixels ({because})"
        if model.get("zero_terminal_snr")
        else "{title}: {label}, predicts {prediction}, {size} pixels ({because})"
    )
    values = {"title": model["title"], "label": model["label"], "size": model["native_size"], "because": model["because"]}
    return say(template, prediction=PREDICTIONS.get(model["prediction"], model["prediction"]), **values)


def tell_network(network: dict[str, Any], out: Console) -> None:
    """What is trained, and what each pattern hits."""
    values = {"layers": sum(network["layers"].values()), "numbers": network["parameters"], "mb": round(network["file_bytes"] / 2**20, 2)}
    out.line(say("network: {layers} layers, {numbers} numbers, {mb} MB a file", **values))
    for option, found in network.get("patterns", {}).items():
        for pattern, count in found.items():
            out.line(say("  {option} {pattern}: {count} layers", option=option, pattern=pattern, count=count))


def tell_plan(plan: dict[str, Any], out: Console) -> None:
    """The plan in a few lines."""
    out.line(say("{images} pictures, {held} held back for validation", images=plan["images"], held=plan["validation_images"]))
    for bucket in plan["buckets"]:
        out.line(f"  {bucket['width']} x {bucket['height']}: {bucket['count']}")
    values = {"steps": plan["steps_per_epoch"], "epochs": plan["epochs"], "total": plan["total_steps"]}
    out.line(say("{steps} steps an epoch x {epochs} epochs = {total} steps", **values))
    out.line(say("about {minutes} min (estimate)", minutes=max(1, round(plan["seconds"] / 60))))
    out.line(say("{files} files, {mb} MB", files=plan["files"], mb=plan["disk_mb"]))
    tell_network(plan["network"], out)
    memory = plan["memory"]
    values = {"needed": memory["needed_mb"], "free": memory["free_mb"]}
    if memory["fits"]:
        out.line(say("memory: {needed} MB of {free} MB free (estimate)", **values))
    else:
        out.line(say("memory: {needed} MB are needed, {free} MB are free (estimate): it may not fit", **values))
