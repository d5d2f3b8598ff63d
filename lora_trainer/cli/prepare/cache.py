"""prepare cache [--clear] [--json]"""

from __future__ import annotations

import argparse

from lora_trainer.cli.common_args import add_json, host
from lora_trainer.cli.console import DONE, FAILED, Console
from lora_trainer.messages import say


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument(
        "--clear", action="store_true", help=console.translate(say("delete it; pictures are encoded anew when they are needed"))
    )
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the size of the caches, or deletes them."""
    from lora_trainer.prep import caches

    cache_dir = host().paths().cache_dir
    overview = caches.overview(cache_dir)
    console.line(
        say("{count} encoded pictures, {mb} MB, in {folder}", count=overview["count"], mb=overview["mb"], folder=overview["folder"])
    )
    for bucket in overview["buckets"]:
        console.line(f"{bucket['width']:>6} x {bucket['height']:<6}{bucket['count']:>8}  {bucket['mb']:>10.2f} MB")
    captions = overview["captions"]
    if captions["count"]:
        console.line(say("{count} encoded captions, {mb} MB, in {folder}", **captions))
    if args.clear:
        cleared = caches.clear(cache_dir)
        console.line(say("{mb} MB freed.", mb=round(cleared.freed / caches.MB, 2)))
        if cleared.in_use:
            console.note(say("{count} files are in use by a run and stay. Try again when it has ended.", count=cleared.in_use))
        overview |= {"freed_mb": round(cleared.freed / caches.MB, 2), "left": cleared.in_use}
        console.document(overview)
        return FAILED if cleared.in_use else DONE
    console.document(overview)
    return DONE
