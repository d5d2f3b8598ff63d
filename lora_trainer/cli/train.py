"""train CONFIG.toml [--set a.b=c]... [--json], or train --resume RUN [--more-epochs N] [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, add_sets, host, run_folder, wrong
from lora_trainer.cli.console import DONE, Console
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.host.base import Host
from lora_trainer.jobs.process_rank import Rank
from lora_trainer.jobs.resume_point import ResumePoint
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig
    from lora_trainer.jobs.folder import RunFolder
    from lora_trainer.jobs.resume_point import ResumePoint


def arguments(parser: argparse.ArgumentParser, out: Console) -> None:
    """Adds the verb's words."""
    text = say("the settings of the run; not needed with --resume, which knows them")
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help=out.worded(text))
    text = say("go on with a run, by its folder or name, from the last state that it kept")
    parser.add_argument("--resume", metavar="RUN", help=out.worded(text))
    text = say("with --resume: train so many epochs longer than planned")
    parser.add_argument("--more-epochs", type=int, default=0, metavar="N", help=out.worded(text))
    parser.add_argument("--into", type=Path, metavar="RUN", help=argparse.SUPPRESS)  # a run's folder that the tab has made already
    add_sets(parser, out)
    add_json(parser, out)


def run(args: argparse.Namespace, out: Console) -> int:
    """Trains; ends with {"run", "outcome", "files"}."""
    from lora_trainer.api.runs import start_run
    from lora_trainer.cli.foreground import ProgressPrinter, exit_status, run_job, tell_end
    from lora_trainer.jobs.folder import RunFolder
    from lora_trainer.jobs.job import Job
    from lora_trainer.jobs.process_rank import process_rank

    place, since, known = process_rank(), None, None
    if args.resume:
        known, config, since = _resumed(args, leads=place.is_main)
        own_host = host(config.memory.device, place.local_rank)
    else:
        config = _new(args, out)
        own_host = host(config.memory.device, place.local_rank)
        config = start_run.placed(config, own_host)
    if not place.is_main:
        return train_along(config, own_host, place, since)
    start_run.refuse(start_run.problems_before(config, own_host, resumed=since is not None))
    folder = known or (RunFolder(args.into) if args.into else start_run.new_folder(config))
    job = Job(start_run.training(config, own_host, folder, place, since), folder, [ProgressPrinter(out)])
    out.note(say("Run {path}", path=str(folder.path)))
    status = run_job(job, out)
    tell_end(job, out)
    result = outcome_of(job, out)
    for file in result["files"]:
        out.line(file)
    out.document(result)
    return exit_status(status)


def _new(args: argparse.Namespace, out: Console) -> TrainConfig:
    from lora_trainer.config.files import read_config

    if args.config is None:
        raise wrong("CONFIG.toml", say("no settings are given."), say("Give a file of settings, or --resume RUN."))
    return read_config(args.config, args.sets, out.note)


def _resumed(args: argparse.Namespace, *, leads: bool) -> tuple[RunFolder, TrainConfig, ResumePoint]:
    """The run's folder, what it began with, and where it goes on."""
    from lora_trainer.api.runs import resume
    from lora_trainer.jobs.manager import MANAGER

    resume.refuse_foreign(args.resume)
    folder = run_folder(args.resume)
    if leads:
        resume.refuse_running(folder, here=MANAGER.runs(folder))
    config, since = resume.resuming(folder, resume.wanted_by(args.sets), more_epochs=args.more_epochs)
    return folder, config, since


def outcome_of(job: Any, out: Console) -> dict[str, Any]:
    """{"run", "outcome", "files", "problems"}"""
    from lora_trainer.jobs.status import word_problem

    return {
        "run": str(job.folder.path),
        "outcome": job.status.outcome,
        "files": [file["path"] for file in job.folder.manifest().get("files", [])],
        "problems": [word_problem(problem, out.language) for problem in job.status.problems],
    }


def train_along(config: TrainConfig, host: Host, place: Rank, since: ResumePoint | None = None) -> int:
    """Takes every step with the first process, to the end. Raises TrainerError, which the first one hears of."""
    from lora_trainer.train.loop import run

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the first process is asked too, and tells the others between two steps
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with closing(run(config, host, Control(), Path(), place, since)) as work:
        for _ in work:
            pass
    return DONE
