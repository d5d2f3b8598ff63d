"""wizard [CONFIG.toml] [--data DIR] --subject ... [--vram GB] [--model FILE] [--out CONFIG.toml] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import add_json, add_overrides, finite_number, host
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.main import as_usage_error
from lora_trainer.errors import TrainerError
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig
    from lora_trainer.host.base import Host

SUBJECTS = ("person", "character", "style", "object", "scenery")


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    config = say("settings to start from; without: the defaults")
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help=console.translate(config))
    parser.add_argument("--data", metavar="DIR", help=console.translate(say("the folder of pictures")))
    parser.add_argument("--subject", choices=SUBJECTS, required=True, help=console.translate(say("what is learned")))
    parser.add_argument(
        "--vram", type=finite_number, metavar="GB", help=console.translate(say("the card's memory; without: this computer's"))
    )
    parser.add_argument("--model", metavar="FILE", help=console.translate(say("the checkpoint to train on")))
    parser.add_argument(
        "--out", type=Path, metavar="CONFIG.toml", help=console.translate(say("writes the settings with the changes applied"))
    )
    add_overrides(parser, console)
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints {"changes", "plan"}; every change has its reason."""
    from lora_trainer.api.runs.plans import change_json, measured_on
    from lora_trainer.config.files import write_config
    from lora_trainer.wizard.advise import suggest

    config = _config(args)
    known = _known_host(config)
    measured = None if known is None else measured_on(known)
    try:
        suggestion = suggest(config, subject=args.subject, vram_gb=args.vram, host=known, measured=measured)
    except TrainerError as error:
        raise as_usage_error(error) from error
    for change in suggestion.changes:
        console.line(f"{change.path} = {change.value}")
        console.line(f"    {change.reason.text(console.language)}")
    if not suggestion.changes:
        console.line(say("Nothing to change: the settings are as they should be."))
    for note in suggestion.notes:
        console.note(say("Note: {message}", message=note))
    if args.out:
        write_config(suggestion.config_after, args.out, template=args.config)
        console.note(say("Written to {path}", path=str(args.out)))
    console.document(
        {
            "changes": [change_json(change, config, suggestion.typed, console.language) for change in suggestion.changes],
            "plan": suggestion.plan_json(),
            "notes": [note.text(console.language) for note in suggestion.notes],
        }
    )
    return DONE


def _config(args: argparse.Namespace) -> TrainConfig:
    from lora_trainer.config.build import apply_overrides, build
    from lora_trainer.config.files import read_config

    paths = [("data.train_data_dir", args.data), ("model.pretrained_model_name_or_path", args.model)]
    overrides = [f"{path}={_quoted(value)}" for path, value in paths if value]
    if args.config:
        return read_config(args.config, [*overrides, *args.overrides])
    return build(apply_overrides({}, [*overrides, *args.overrides]))


def _quoted(text: str) -> str:
    """The text as a TOML literal string, in which backslashes are not escapes."""
    return f"'{text}'" if "'" not in text else text


def _known_host(config: TrainConfig) -> Host | None:
    """The host if a model of the user's is known; None means that Stable Diffusion 1.5 is assumed, not the demo's small model."""
    from lora_trainer import assets

    standalone = host()
    if config.model.pretrained_model_name_or_path:
        return standalone
    loaded = next((checkpoint for checkpoint in standalone.checkpoints() if checkpoint.loaded), None)
    return None if loaded is None or loaded.title == assets.TOY else standalone
