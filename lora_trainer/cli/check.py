"""check CONFIG.toml [--show DIR] [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, add_overrides, host
from lora_trainer.cli.console import DONE, USAGE_ERROR, Console
from lora_trainer.errors import ConfigError
from lora_trainer.messages import Message, duration, say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig


PREDICTIONS = {"epsilon": say("the noise"), "v": "v", "flow": say("rectified flow")}
PHASES = {
    "load": say("loading the model"),
    "captions": say("encoding captions"),
    "pictures": say("encoding pictures"),
    "step": say("a training step"),
    "preview": say("drawing a preview"),
    "save": say("saving a file"),
}


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help=console.translate(say("the settings of the run")))
    parser.add_argument(
        "--show",
        type=Path,
        metavar="DIR",
        help=console.translate(say("draws the first batches as they will be trained: cut, mask, caption")),
    )
    add_overrides(parser, console)
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the plan; exit status 2 if there are problems."""
    from lora_trainer.api.runs import plans
    from lora_trainer.config.files import read_config

    batches: dict[str, Any] = {}
    try:
        config = read_config(args.config, args.overrides, console.note)
        plan = plans.check_config(config, host())
        if args.show and plan["images"]:
            batches = {"shown": _show(config, args.show, console)}
    except ConfigError as error:
        plan = {**plans.EMPTY_PLAN, "problems": error.problems, "warnings": []}
    problems, model = plan["problems"], plan.get("model")
    if model:
        console.line(model_message(model))
    if plan["images"]:
        print_plan(plan, console)
    for warning in plan["warnings"]:
        console.note(say("Note: {message}", message=warning["message"]))
    console.problems(problems)
    console.document(
        plan
        | batches
        | {"model": model and {name: _translated(value, console) for name, value in model.items()}}
        | {"problems": [problem.to_json(console.language) for problem in problems]}
        | {
            "warnings": [
                {**warning, "message": console.translate(warning["message"]), "fix": console.translate(warning["fix"])}
                for warning in plan["warnings"]
            ]
        }
    )
    return USAGE_ERROR if problems else DONE


def _show(config: TrainConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Draws the first batches as a sheet and writes them as JSON to `folder`."""
    from lora_trainer.api.dataset_reports import write_first_batches as show_batches
    from lora_trainer.api.runs.plans import pictures_of

    batches = show_batches(config, pictures_of(config), folder, console.language)
    for file in batches["files"]:
        console.line(file)
    return batches


def _translated(value: Any, console: Console) -> Any:
    """The value with messages translated."""
    if isinstance(value, list):
        return [_translated(part, console) for part in value]
    return console.translate(value) if isinstance(value, Message) else value


def model_message(model: dict[str, Any]) -> Message:
    """The model on one line, with the reason for its detection."""
    template = (
        "{title}: {label}, predicts {prediction}, zero terminal SNR, {size} pixels ({because})"
        if model.get("zero_terminal_snr")
        else "{title}: {label}, predicts {prediction}, {size} pixels ({because})"
    )
    values = {"title": model["title"], "label": model["label"], "size": model["native_size"], "because": model["because"]}
    return say(template, prediction=PREDICTIONS.get(model["prediction"], model["prediction"]), **values)


def print_network(network: dict[str, Any], console: Console) -> None:
    """Prints how much is trained, and how many layers each pattern matches."""
    values = {"layers": sum(network["layers"].values()), "numbers": network["parameters"], "mb": round(network["file_bytes"] / 2**20, 2)}
    console.line(say("network: {layers} layers, {numbers} parameters, {mb} MB a file", **values))
    for option, counts in network.get("patterns", {}).items():
        for pattern, count in counts.items():
            console.line(say("  {option} {pattern}: {count} layers", option=option, pattern=pattern, count=count))


def length_messages(plan: dict[str, Any]) -> Iterator[Message]:
    """How many steps the run has, and how long it takes."""
    values = {"steps": plan["steps_per_epoch"], "epochs": plan["epochs"], "total": plan["total_steps"]}
    if values["steps"] * values["epochs"] == values["total"]:
        yield say("{steps} steps an epoch x {epochs} epochs = {total} steps", **values)
    else:
        yield say("{total} steps of {steps} an epoch: the run ends within epoch {epochs}", **values)
    if plan.get("seconds_measured"):
        yield say("about {time} (as measured in an earlier run)", time=duration(plan["seconds"]))
    else:
        yield say("about {time} (estimate)", time=duration(plan["seconds"]))


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Prints the plan in a few lines."""
    console.line(say("{images} pictures, {held} held back for validation", images=plan["images"], held=plan["validation_images"]))
    for bucket in plan["buckets"]:
        console.line(f"  {bucket['width']} x {bucket['height']}: {bucket['count']}")
    for message in length_messages(plan):
        console.line(message)
    console.line(say("{files} files, {mb} MB", files=plan["files"], mb=plan["disk_mb"]))
    print_network(plan["network"], console)
    memory = plan["memory"]
    values = {"needed": memory["needed_mb"], "free": memory["free_mb"]}
    if memory["fits"]:
        console.line(say("memory: {needed} MB of {free} MB free (estimate)", **values))
    else:
        console.line(say("memory: {needed} MB are needed, {free} MB are free (estimate): it may not fit", **values))
    for name, megabytes in memory["phases"].items():
        console.line(say("  {phase}: {mb} MB", phase=PHASES[name], mb=megabytes))
