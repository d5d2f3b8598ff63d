"""prepare scan DIR|CONFIG.toml [--trigger WORD] [--set a.b=c]... [--out REPORT] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import add_json, add_sets
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.main import as_wrong_usage
from lora_trainer.errors import DatasetError
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig

OFTEN = 100
"""Pictures between two lines about progress."""


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("place", metavar="DIR", help=out.worded(say("the folder of pictures, or a config that names it")))
    parser.add_argument("--trigger", default="", metavar="WORD", help=out.worded(say("the trigger word to look for in captions")))
    parser.add_argument(
        "--out", type=Path, metavar="REPORT", help=out.worded(say("writes the report: text, or JSON where the name ends in .json"))
    )
    add_sets(parser, out)
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Prints the report, or with --json the document."""
    import json

    from lora_trainer.api.dataset_reports import examined
    from lora_trainer.files import write_atomically
    from lora_trainer.prep.report import report

    def tell(done: int, total: int) -> None:
        if done % OFTEN == 0:
            out.note(say("{phase}: {done} of {total}", phase=say("Reading pictures"), done=done, total=total))

    try:
        diagnosis, advice = examined(_config(args), tell)
    except DatasetError as error:
        raise as_wrong_usage(error) from error
    found = diagnosis.to_json(advice, out.language)
    text = report(found, out.language)
    if args.out:
        content = json.dumps(found, ensure_ascii=False, indent=1) if args.out.suffix.lower() == ".json" else text
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, content.encode("utf-8"))
        out.note(say("Written to {path}", path=str(args.out)))
    out.line(text.rstrip())
    out.document(found)
    return DONE


def _config(args: argparse.Namespace) -> TrainConfig:
    from lora_trainer.config.build import apply_sets, build
    from lora_trainer.config.files import read_config

    sets = [*([f"data.trigger_word={args.trigger}"] if args.trigger else []), *args.sets]
    place = Path(args.place)
    if place.suffix.lower() == ".toml" and place.is_file():
        return read_config(place, sets)
    return build(apply_sets({"data": {"train_data_dir": str(place)}}, sets))
