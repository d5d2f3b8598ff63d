"""import FILE|TEXT|- --out CONFIG.toml [--json]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.cli.common_args import add_json, usage_error
from lora_trainer.cli.console import DONE, FAILED, Console
from lora_trainer.errors import NothingToImport
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.importing import Imported


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    file = say("settings of another trainer: a file, the text itself, or - for standard input; or a trained LoRA, whose header holds them")
    parser.add_argument("file", metavar="FILE", help=console.translate(file))
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="CONFIG.toml",
        help=console.translate(say("where the settings are written in this trainer's form")),
    )
    parser.add_argument("--overwrite", action="store_true", help=console.translate(say("replace the file if it exists already")))
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Writes the config; prints what became of every key. Exit status 1, and nothing is written, where nothing can be taken."""
    from lora_trainer.config.files import config_text
    from lora_trainer.files import write_atomically

    if args.out.exists() and not args.overwrite:
        raise usage_error("--out", say("{file} exists already.", file=str(args.out)), say("Choose another name, or add --overwrite."))
    try:
        imported = _read(args.file)
    except NothingToImport as error:  # the file was found and read: it is the import that failed
        console.problems(error.problems)
        console.document({"problems": [problem.to_json(console.language) for problem in error.problems]})
        return FAILED
    text = config_text(imported.config, changed_only=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, text.encode("utf-8"))
    print_imported(imported, console)
    console.note(say("Written to {path}", path=str(args.out)))
    console.document({**imported.to_json(console.language), "out": str(args.out)})
    return DONE


def print_imported(imported: Imported, console: Console) -> None:
    """Prints what was taken, what was left and why, and the counts."""
    from lora_trainer.config.importing.result import KINDS, masked

    console.line(KINDS[imported.kind])
    for taken in imported.taken:
        console.line(f"  {taken.key} = {_short(masked(taken.key, taken.value))}  ->  {', '.join(taken.paths)}")
    if imported.left:
        console.line(say("Not taken:"))
    for left in imported.left:
        console.line(f"  {left.key} = {_short(masked(left.key, left.value))}  ({left.why.text(console.language)})")
    if imported.filled:
        console.line(say("Not in the file, so set to the other program's own defaults:"))
    for filled in imported.filled:
        console.line(f"  {filled.path} = {_short(filled.value)}")
    console.line(
        say(
            "{keys} keys: {taken} taken, {left} not taken, each with its reason.",
            keys=imported.keys,
            taken=len(imported.taken),
            left=len(imported.left),
        )
    )
    for note in imported.notes:
        console.note(say("Note: {message}", message=note))


def _read(text: str) -> Imported:
    from lora_trainer.config.importing import import_file, import_metadata, import_text

    if text == "-":
        return import_text(sys.stdin.read())
    if text.lstrip()[:1] in ("{", "[") and not Path(text).exists():
        return import_text(text)
    if text.lower().endswith(".safetensors"):
        from lora_trainer.models.files.tensor_file import contents

        return import_metadata(contents(Path(text)).metadata)
    return import_file(Path(text))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
