"""import FILE|TEXT|- --out CONFIG.toml [--json]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import add_json, wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.importing import Imported


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    file = say("settings of another trainer: a file, the text itself, or - for standard input; or a trained LoRA, whose header tells them")
    parser.add_argument("file", metavar="FILE", help=out.worded(file))
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="CONFIG.toml",
        help=out.worded(say("where the settings are written in this trainer's form")),
    )
    parser.add_argument("--overwrite", action="store_true", help=out.worded(say("replace the file where it is there already")))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Writes the config; tells of every key what became of it."""
    from lora_trainer.config.files import config_text
    from lora_trainer.files import write_atomically

    if args.out.exists() and not args.overwrite:
        raise wrong("--out", say("{file} is there already.", file=str(args.out)), say("Choose another name, or add --overwrite."))
    found = _read(args.file)
    text = config_text(found.config, changed_only=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, text.encode("utf-8"))
    tell(found, out)
    out.note(say("Written to {path}", path=str(args.out)))
    out.document({**found.to_json(out.language), "out": str(args.out)})
    return DONE


def tell(found: Imported, out: Console) -> None:
    """What was taken, what was left and why, and the count."""
    from lora_trainer.config.importing.result import KINDS, shown

    out.line(KINDS[found.kind])
    for taken in found.taken:
        out.line(f"  {taken.key} = {_short(shown(taken.key, taken.value))}  ->  {', '.join(taken.paths)}")
    if found.left:
        out.line(say("Not taken:"))
    for left in found.left:
        out.line(f"  {left.key} = {_short(shown(left.key, left.value))}  ({left.why.text(out.language)})")
    if found.filled:
        out.line(say("Not in the file, so as the other program does by itself:"))
    for filled in found.filled:
        out.line(f"  {filled.path} = {_short(filled.value)}")
    out.line(
        say(
            "{keys} keys: {taken} taken, {left} not taken, each with its reason.",
            keys=found.keys,
            taken=len(found.taken),
            left=len(found.left),
        )
    )
    for note in found.notes:
        out.note(say("Note: {message}", message=note))


def _read(text: str) -> Imported:
    from lora_trainer.config.importing import import_file, import_text, import_words

    if text == "-":
        return import_text(sys.stdin.read())
    if text.lstrip()[:1] in ("{", "[") and not Path(text).exists():
        return import_text(text)
    if text.lower().endswith(".safetensors"):
        from lora_trainer.models.files.tensor_file import contents

        return import_words(contents(Path(text)).words)
    return import_file(Path(text))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
