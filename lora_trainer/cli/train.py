"""train CONFIG.toml [--set a.b=c]... [--json], or train --resume RUN [--more-epochs N] [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
import signal
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.cli.common_args import add_json, add_overrides, find_run, host, usage_error
from lora_trainer.cli.console import DONE, Console
from lora_trainer.control import Control
from lora_trainer.messages import say

if TYPE_CHECKING:
    from lora_trainer.config.schema import TrainConfig
    from lora_trainer.host.base import Host
    from lora_trainer.jobs.folder import RunFolder
    from lora_trainer.jobs.job import Job
    from lora_trainer.jobs.process_rank import Rank
    from lora_trainer.jobs.resume_point import ResumePoint


def add_arguments(parser: argparse.ArgumentParser, console: Console) -> None:
    """Adds the arguments of the verb."""
    text = say("the settings of the run; not needed with --resume, which knows them")
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help=console.translate(text))
    text = say("go on with a run, by its folder or name, from the last state that it kept")
    parser.add_argument("--resume", metavar="RUN", help=console.translate(text))
    text = say("with --resume: train so many epochs longer than planned")
    parser.add_argument("--more-epochs", type=int, default=0, metavar="N", help=console.translate(text))
    parser.add_argument("--into", type=Path, metavar="RUN", help=argparse.SUPPRESS)  # a run's folder that the tab has made already
    add_overrides(parser, console)
    add_json(parser, console)


def run(args: argparse.Namespace, console: Console) -> int:
    """Trains; prints {"run", "outcome", "files"}."""
    from lora_trainer.api.runs import resume, start_run
    from lora_trainer.cli.foreground import ProgressPrinter
    from lora_trainer.jobs.folder import RunFolder
    from lora_trainer.jobs.job import Job
    from lora_trainer.jobs.process_rank import process_rank

    rank = process_rank()
    if not args.resume:
        config = _new_config(args, console)
        own_host = host(config.memory.device, rank.local_rank)
        config = start_run.resolve_paths(config, own_host)
        if not rank.is_main:
            return train_worker(config, own_host, rank)
        start_run.raise_problems(start_run.find_problems(config, own_host))
        folder = RunFolder(args.into) if args.into else start_run.create_run_folder(config)
        return _run_job(Job(start_run.training_work(config, own_host, folder, rank), folder, [ProgressPrinter(console)]), console)
    folder = _run_to_resume(args)
    with folder.claimed() if rank.is_main else nullcontext() as claim:
        beside = Path() if args.config is None else args.config.parent
        changes = resume.changes_from_sets(args.overrides)
        config, resume_point = resume.plan_resume(folder, changes, more_epochs=args.more_epochs, beside=beside)
        own_host = host(config.memory.device, rank.local_rank)
        if not rank.is_main:
            return train_worker(config, own_host, rank, resume_point)
        start_run.raise_problems(start_run.find_problems(config, own_host, resumed=True))
        work = start_run.training_work(config, own_host, folder, rank, resume_point)
        return _run_job(Job(work, folder, [ProgressPrinter(console)], claim=claim), console)


def _run_job(job: Job, console: Console) -> int:
    """Trains to the end in this thread, and prints the files and the result."""
    from lora_trainer.cli.foreground import exit_status, print_outcome, run_job

    console.note(say("Run {path}", path=str(job.folder.path)))
    status = run_job(job, console)
    print_outcome(job, console)
    result = run_result(job, console)
    for file in result["files"]:
        console.line(file)
    console.document(result)
    return exit_status(status)


def _new_config(args: argparse.Namespace, console: Console) -> TrainConfig:
    from lora_trainer.config.files import read_config

    if args.config is None:
        raise usage_error("CONFIG.toml", say("no settings are given."), say("Give a file of settings, or --resume RUN."))
    return read_config(args.config, args.overrides, console.note)


def _run_to_resume(args: argparse.Namespace) -> RunFolder:
    from lora_trainer.api.runs import resume

    resume.refuse_foreign(args.resume)
    return find_run(args.resume)


def run_result(job: Any, console: Console) -> dict[str, Any]:
    """{"run", "outcome", "files", "problems"}"""
    from lora_trainer.jobs.status import translate_problem

    return {
        "run": str(job.folder.path),
        "outcome": job.status.outcome,
        "files": [file["path"] for file in job.folder.manifest().get("files", [])],
        "problems": [translate_problem(problem, console.language) for problem in job.status.problems],
    }


def train_worker(config: TrainConfig, host: Host, rank: Rank, resume_point: ResumePoint | None = None) -> int:
    """Trains on a rank other than 0, to the end. Raises TrainerError, which is reported to rank 0."""
    from lora_trainer.train.loop import run

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # rank 0 gets the signal too, and passes it on between two steps
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with closing(run(config, host, Control(), Path(), rank, resume_point)) as work:
        for _ in work:
            pass
    return DONE
