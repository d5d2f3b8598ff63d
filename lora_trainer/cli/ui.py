"""ui [--port N] [--listen] [--allow-path DIR] [--allow-host NAME] [--no-browser]"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_trainer.cli.console import DONE, Console
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.host.base import Host

PORT = 7865


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument(
        "--listen", action="store_true", help=console.translate(say("let other computers use it; only this folder is open to them"))
    )
    allow = say("another folder that may be used with --listen; can be repeated")
    parser.add_argument("--allow-path", type=Path, action="append", default=[], metavar="DIR", help=console.translate(allow))
    name = say("a name under which browsers reach it, such as that of a reverse proxy; can be repeated")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=console.translate(name))
    parser.add_argument("--no-browser", action="store_true", help=console.translate(say("do not open a browser")))


def run(args: argparse.Namespace, console: Console) -> int:
    """Serves the tab until Ctrl-C; a run that is going on is stopped and saved first."""
    from lora_trainer.host.standalone import StandaloneHost
    from lora_trainer.jobs.manager import MANAGER
    from lora_trainer.ui.standalone import serve

    address = "0.0.0.0" if args.listen else "127.0.0.1"
    console.note(say("The tab: {address} (Ctrl-C to quit)", address=f"http://127.0.0.1:{args.port}/"))
    browser = not args.no_browser and sys.stdout.isatty()
    host = cast("Host", StandaloneHost(listen=args.listen, allow=args.allow_path, names=args.allow_host))
    with suppress(KeyboardInterrupt):
        serve(host, MANAGER, port=args.port, address=address, browser=browser)
    if (job := MANAGER.current) is not None:
        console.note(say("Stopping and saving the run {run}. Once more to abort.", run=job.folder.id))
        job.command("stop")
        while not job.join(0.5):
            pass
    return DONE
