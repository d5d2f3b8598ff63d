"""train CONFIG.toml [--set a.b=c]... [--json]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_trainer.cli.asked import add_json, add_sets, host
from lora_trainer.cli.out import Out
from lora_trainer.messages import say


def arguments(parser: argparse.ArgumentParser, out: Out) -> None:
    """Adds the verb's words."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help=out.worded(say("the settings of the run")))
    parser.add_argument("--into", type=Path, metavar="RUN", help=argparse.SUPPRESS)  # a run's folder that the tab has made already
    add_sets(parser, out)
    add_json(parser, out)


def run(args: argparse.Namespace, out: Out) -> int:
    """Trains; ends with {"run", "outcome", "files"}."""
    from lora_trainer.api import launch
    from lora_trainer.cli.along import train_along
    from lora_trainer.cli.running import Console, exit_status, run_job, tell_end
    from lora_trainer.config.files import read_config
    from lora_trainer.jobs.folder import RunFolder
    from lora_trainer.jobs.job import Job
    from lora_trainer.jobs.ranks import place_of

    place, config = place_of(), read_config(args.config, args.sets, out.note)
    own_host = host(config.memory.device, place.local)
    config = launch.placed(config, own_host)
    if not place.leads:
        return train_along(config, own_host, place)
    launch.refuse(launch.problems_before(config, own_host))
    folder = RunFolder(args.into) if args.into else launch.new_folder(config)
    job = Job(launch.training(config, own_host, folder, place), folder, [Console(out)])
    out.note(say("Run {path}", path=str(folder.path)))
    status = run_job(job, out)
    tell_end(job, out)
    result = outcome_of(job, out)
    for file in result["files"]:
        out.line(file)
    out.document(result)
    return exit_status(status)


def outcome_of(job: Any, out: Out) -> dict[str, Any]:
    """{"run", "outcome", "files", "problems"}"""
    from lora_trainer.jobs.status import word_problem

    return {
        "run": str(job.folder.path),
        "outcome": job.status.outcome,
        "files": [file["path"] for file in job.folder.manifest().get("files", [])],
        "problems": [word_problem(problem, out.language) for problem in job.status.problems],
    }
