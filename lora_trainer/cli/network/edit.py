"""network edit FILE --out FILE [--set KEY=VALUE]... [--remove KEY]... [--trigger TEXT] [--preview PICTURE] [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_trainer.cli.common_args import wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.cli.network.network_args import add_out, pairs, ready
from lora_trainer.messages import Message, say

WORDS: dict[str, Message] = {
    "title": say("the file's title"),
    "trigger": say("the word that calls what was learned; also for the WebUI's card"),
    "description": say("what the file is; also for the WebUI's card"),
    "author": say("who made it"),
    "license": say("under which licence it may be used"),
    "tags": say("tags, with commas between"),
}


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("file", type=Path, metavar="FILE", help=out.worded(say("a LoRA or LyCORIS file")))
    set_text = say("a key of the header, such as ss_training_comment=...; as often as wanted")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help=out.worded(set_text))
    remove = say("a key to take out of the header; as often as wanted")
    parser.add_argument("--remove", action="append", default=[], metavar="KEY", help=out.worded(remove))
    for name, text in WORDS.items():
        parser.add_argument(f"--{name}", metavar="TEXT", help=out.worded(text))
    preview = say("a picture for the header and, as NAME.preview.png, for the WebUI's card")
    parser.add_argument("--preview", type=Path, metavar="PICTURE", help=out.worded(preview))
    add_out(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes a copy whose header says something else."""
    from lora_trainer.network_tools.edit import Editing, edit

    named = {name: getattr(args, name) for name in WORDS if getattr(args, name) is not None}
    wanted = Editing(pairs(args.sets, "--set"), args.remove, named, args.preview)
    if not (wanted.words or wanted.removed or named or args.preview):
        raise wrong("--set", say("nothing is to be changed."), say("Add --trigger, --set KEY=VALUE or --preview PICTURE."))
    target = ready(args, [args.file])
    words = edit(args.file, target, wanted)
    out.line(say("Written to {path}", path=str(target)))
    out.document({"out": str(target), "metadata": {key: value for key, value in words.items() if key != "modelspec.thumbnail"}})
    return DONE
