"""Arguments that several verbs share: a config with --set, a run by path or name, lists of numbers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_trainer.cli.console import Console
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.folder import RunFolder


def add_json(parser: argparse.ArgumentParser, console: Console) -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help=console.translate(say("print one JSON document on stdout")))


def add_overrides(parser: argparse.ArgumentParser, console: Console) -> None:
    """--set a.b=c, repeatable"""
    text = say("override one setting of the config, such as data.batch_size=2; can be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides", help=console.translate(text))


def host(device: str = "", number: int = 0) -> Host:
    """The headless host of the working directory; `device` and `number` choose its device (host.standalone)."""
    from lora_trainer.host.standalone import StandaloneHost

    return cast("Host", StandaloneHost(device=device, number=number))


def find_run(text: str) -> RunFolder:
    """A run by its folder, or by its name in ./runs. Raises ConfigError with the names that exist."""
    from lora_trainer.jobs.folder import RunFolder, is_run, list_runs

    runs_dir = host().paths().runs_dir
    for path in (Path(text), runs_dir / text):
        if text.strip() and path.is_dir() and is_run(path):
            return RunFolder(path)
    names = [folder.id for folder in list_runs(runs_dir)[:8]]
    if names:
        raise usage_error(
            "RUN", say("there is no run {run}.", run=text), say("Known in {folder}: {known}", folder=str(runs_dir), known=", ".join(names))
        )
    raise usage_error("RUN", say("there is no run {run}.", run=text), say("Give the path of a run's folder."))


def finite_number(text: str) -> float:
    """A number; also the type of an argument. Raises ValueError for anything else, "nan" and "inf" included."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def parse_numbers(text: str, option: str) -> list[float]:
    """Comma-separated numbers. Raises ConfigError that names the option."""
    try:
        return [finite_number(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise usage_error(option, say("{value} is not a list of numbers.", value=text), say("Write for example 0.2,0.4,0.6")) from None


def parse_whole_numbers(text: str, option: str) -> list[int]:
    """As `parse_numbers`, for numbers such as those of epochs."""
    numbers = parse_numbers(text, option)
    if any(number != int(number) for number in numbers):
        raise usage_error(option, say("{value} is not a list of whole numbers.", value=text), say("Write for example 1,2,3"))
    return [int(number) for number in numbers]


def usage_error(path: str, message: Message, fix: Message) -> ConfigError:
    """A ConfigError with one problem of the command line (exit status 2)."""
    return ConfigError([Problem(path, message, fix)])
