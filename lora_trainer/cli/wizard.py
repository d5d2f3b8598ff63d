"""wizard [CONFIG.toml] [--data DIR] --subject ... [--vram GB] [--model FILE] [--out CONFIG.toml] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import add_json, add_sets, host
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.main import as_wrong_usage
from lora_trainer.errors import TrainerError
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig
    from lora_trainer.host.base import Host

SUBJECTS = ("person", "character", "style", "object", "scenery")


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    config = say("settings to start from; without: the defaults")
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help=out.worded(config))
    parser.add_argument("--data", metavar="DIR", help=out.worded(say("the folder of pictures")))
    parser.add_argument("--subject", choices=SUBJECTS, required=True, help=out.worded(say("what is learned")))
    parser.add_argument("--vram", type=float, metavar="GB", help=out.worded(say("the card's memory; without: this computer's")))
    parser.add_argument("--model", metavar="FILE", help=out.worded(say("the checkpoint to train on")))
    parser.add_argument("--out", type=Path, metavar="CONFIG.toml", help=out.worded(say("writes the settings with the changes in them")))
    add_sets(parser, out)
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Prints {"changes", "plan"}; every change has its reason."""
    from lora_trainer.api.runs.plans import change_json
    from lora_trainer.config.files import write_config
    from lora_trainer.wizard.advise import suggest

    config = _config(args)
    try:
        found = suggest(config, subject=args.subject, vram_gb=args.vram, host=_asked_host(config))
    except TrainerError as error:
        raise as_wrong_usage(error) from error
    for change in found.changes:
        out.line(f"{change.path} = {change.value}")
        out.line(f"    {change.because.text(out.language)}")
    if not found.changes:
        out.line(say("Nothing to change: the settings are as they should be."))
    for note in found.notes:
        out.note(say("Note: {message}", message=note))
    if args.out:
        write_config(found.config_after, args.out, template=args.config)
        out.note(say("Written to {path}", path=str(args.out)))
    out.document(
        {
            "changes": [change_json(change, config, found.typed, out.language) for change in found.changes],
            "plan": found.plan.to_json(),
            "notes": [note.text(out.language) for note in found.notes],
        }
    )
    return DONE


def _config(args: argparse.Namespace) -> TrainConfig:
    from lora_trainer.config.build import apply_sets, build
    from lora_trainer.config.files import read_config

    given = [("data.train_data_dir", args.data), ("model.pretrained_model_name_or_path", args.model)]
    words = [f"{path}={_quoted(value)}" for path, value in given if value]
    if args.config:
        return read_config(args.config, [*words, *args.sets])
    return build(apply_sets({}, [*words, *args.sets]))


def _quoted(text: str) -> str:
    """As a TOML text in which no backslash is an escape."""
    return f"'{text}'" if "'" not in text else text


def _asked_host(config: TrainConfig) -> Host | None:
    """The host where it knows a model of the user's; without one Stable Diffusion 1.5 is assumed, not the small model of the demo."""
    from lora_trainer import assets

    own = host()
    if config.model.pretrained_model_name_or_path:
        return own
    loaded = next((known for known in own.checkpoints() if known.loaded), None)
    return None if loaded is None or loaded.title == assets.TOY else own
