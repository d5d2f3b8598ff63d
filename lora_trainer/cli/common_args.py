"""What several verbs ask for: a config with --set, a run by path or name, numbers in a row."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_trainer.cli.console import Console
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.folder import RunFolder


def add_json(parser: argparse.ArgumentParser, out: Console) -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help=out.worded(say("print one JSON document on stdout")))


def add_sets(parser: argparse.ArgumentParser, out: Console) -> None:
    """--set a.b=c, as often as wanted"""
    text = say("one setting over the config's, such as data.batch_size=2; as often as wanted")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="sets", help=out.worded(text))


def host(device: str = "", number: int = 0) -> Host:
    """The headless host of the working directory; `device` and `number` say where it calculates (host.standalone)."""
    from lora_trainer.host.standalone import StandaloneHost

    return cast("Host", StandaloneHost(device=device, number=number))


def run_folder(text: str) -> RunFolder:
    """A run by its folder, or by its name in ./runs. Raises ConfigError with the names that are there."""
    from lora_trainer.jobs.folder import RunFolder, is_run, runs_in

    runs_dir = host().paths().runs_dir
    for path in (Path(text), runs_dir / text):
        if text.strip() and path.is_dir() and is_run(path):
            return RunFolder(path)
    known = [folder.id for folder in runs_in(runs_dir)[:8]]
    if known:
        raise wrong(
            "RUN", say("there is no run {run}.", run=text), say("Known in {folder}: {known}", folder=str(runs_dir), known=", ".join(known))
        )
    raise wrong("RUN", say("there is no run {run}.", run=text), say("Give the path of a run's folder."))


def numbers(text: str, option: str) -> list[float]:
    """Numbers with commas between. Raises ConfigError that names the option."""
    try:
        return [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise wrong(option, say("{value} is not a row of numbers.", value=text), say("Write for example 0.2,0.4,0.6")) from None


def wrong(path: str, message: Message, fix: Message) -> ConfigError:
    """One problem with what was asked for."""
    return ConfigError([Problem(path, message, fix)])
