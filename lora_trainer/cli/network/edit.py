"""network edit FILE --out FILE [--set KEY=VALUE]... [--remove KEY]... [--trigger TEXT] [--preview PICTURE] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, check_out, parse_pairs
from lora_trainer.messages import Message, say

WORDS: dict[str, Message] = {
    "title": say("the file's title"),
    "trigger": say("the word that calls what was learned; also for the WebUI's card"),
    "description": say("what the file is; also for the WebUI's card"),
    "author": say("who made it"),
    "license": say("under which licence it may be used"),
    "tags": say("tags, with commas between"),
}


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("file", type=Path, metavar="FILE", help=console.translate(say("a LoRA or LyCORIS file")))
    set_text = say("a key of the header, such as ss_training_comment=...; can be repeated")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help=console.translate(set_text))
    remove = say("a key to take out of the header; can be repeated")
    parser.add_argument("--remove", action="append", default=[], metavar="KEY", help=console.translate(remove))
    for name, text in WORDS.items():
        parser.add_argument(f"--{name}", metavar="TEXT", help=console.translate(text))
    preview = say("a picture for the header and, as NAME.preview.png, for the WebUI's card")
    parser.add_argument("--preview", type=Path, metavar="PICTURE", help=console.translate(preview))
    add_out(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes a copy with edited metadata."""
    from lora_trainer.network_tools.edit import EditOptions, edit

    fields = {name: getattr(args, name) for name in WORDS if getattr(args, name) is not None}
    edits = EditOptions(parse_pairs(args.sets, "--set"), args.remove, fields, args.preview)
    if not (edits.metadata or edits.removed or fields or args.preview):
        raise usage_error("--set", say("nothing is to be changed."), say("Add --trigger, --set KEY=VALUE or --preview PICTURE."))
    target = check_out(args, [args.file])
    metadata = edit(args.file, target, edits)
    console.line(say("Written to {path}", path=str(target)))
    console.document({"out": str(target), "metadata": {key: value for key, value in metadata.items() if key != "modelspec.thumbnail"}})
    return DONE
