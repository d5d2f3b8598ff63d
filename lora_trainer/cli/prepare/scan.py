"""prepare scan DIR|CONFIG.toml [--trigger WORD] [--set a.b=c]... [--out REPORT] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import add_json, add_overrides
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.main import as_usage_error
from lora_trainer.errors import DatasetError
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig

OFTEN = 100
"""Pictures between two progress lines."""


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("place", metavar="DIR", help=console.translate(say("the folder of pictures, or a config that names it")))
    parser.add_argument("--trigger", default="", metavar="WORD", help=console.translate(say("the trigger word to look for in captions")))
    parser.add_argument(
        "--out", type=Path, metavar="REPORT", help=console.translate(say("writes the report: text, or JSON where the name ends in .json"))
    )
    add_overrides(parser, console)
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the report, or with --json the document."""
    import json

    from lora_trainer.api.dataset_reports import examine_dataset
    from lora_trainer.files import write_atomically
    from lora_trainer.prep.report import report

    def tell(done: int, total: int) -> None:
        if done % OFTEN == 0:
            console.note(say("{phase}: {done} of {total}", phase=say("Reading pictures"), done=done, total=total))

    try:
        diagnosis, advice = examine_dataset(_config(args), tell)
    except DatasetError as error:
        raise as_usage_error(error) from error
    document = diagnosis.to_json(advice, console.language)
    text = report(document, console.language)
    if args.out:
        content = json.dumps(document, ensure_ascii=False, indent=1) if args.out.suffix.lower() == ".json" else text
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, content.encode("utf-8"))
        console.note(say("Written to {path}", path=str(args.out)))
    console.line(text.rstrip())
    console.document(document)
    return DONE


def _config(args: argparse.Namespace) -> TrainConfig:
    from lora_trainer.config.build import apply_overrides, build
    from lora_trainer.config.files import read_config

    overrides = [*([f"data.trigger_word={args.trigger}"] if args.trigger else []), *args.overrides]
    place = Path(args.place)
    if place.suffix.lower() == ".toml" and place.is_file():
        return read_config(place, overrides)
    return build(apply_overrides({"data": {"train_data_dir": str(place)}}, overrides))
