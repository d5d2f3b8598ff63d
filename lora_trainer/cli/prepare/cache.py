"""prepare cache [--clear] [--json]"""

from __future__ import annotations

import argparse

from lora_trainer.cli.common_args import add_json, host
from lora_trainer.cli.console import DONE, FAILED, Console
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the part's words."""
    parser.add_argument("--clear", action="store_true", help=out.worded(say("delete it; pictures are encoded anew when they are needed")))
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Shows the size of what is kept, or deletes it."""
    from lora_trainer.prep import caches

    cache_dir = host().paths().cache_dir
    found = caches.overview(cache_dir)
    out.line(say("{count} encoded pictures, {mb} MB, in {folder}", count=found["count"], mb=found["mb"], folder=found["folder"]))
    for bucket in found["buckets"]:
        out.line(f"{bucket['width']:>6} x {bucket['height']:<6}{bucket['count']:>8}  {bucket['mb']:>10.2f} MB")
    captions = found["captions"]
    if captions["count"]:
        out.line(say("{count} encoded captions, {mb} MB, in {folder}", **captions))
    if args.clear:
        cleared = caches.clear(cache_dir)
        out.line(say("{mb} MB freed.", mb=round(cleared.freed / caches.MB, 2)))
        if cleared.left:
            out.note(say("{count} files are in use by a run and stay. Try again when it has ended.", count=cleared.left))
        found |= {"freed_mb": round(cleared.freed / caches.MB, 2), "left": cleared.left}
        out.document(found)
        return FAILED if cleared.left else DONE
    out.document(found)
    return DONE
