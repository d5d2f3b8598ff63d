"""Runs that are killed and resumed: as a job in a folder, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lora_trainer.api.runs import start_run
from lora_trainer.api.runs.resume import plan_resume
from lora_trainer.config.files import write_config
from lora_trainer.events import Event
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs.events_log import EventRecord
from tests.train.runs import small_config, tensors_of

ROOT = Path(__file__).parents[2]
VARIED: dict[str, Any] = {
    "steps__max_train_steps": 14,
    "steps__gradient_accumulation_steps": 2,
    "data__batch_size": 4,
    "data__shuffle_caption": True,
    "data__caption_dropout_rate": 0.2,
    "data__caption_tag_dropout_rate": 0.2,
    "data__flip_aug": True,
    "loss__min_snr_gamma": 5.0,
    "schedule__type": "cosine",
    "schedule__warmup_steps": 3,
    "save__ema_decay": 0.9,
    "save__state_every_n_steps": 1,
    "save__state_every_minutes": 0.0,
}
"""Everything at once that a resume must bring back."""
OPTIMIZERS = (("AdamW", 2e-3), ("AdaFactor", 2e-3), ("Prodigy", 1.0), ("AdamWScheduleFree", 2e-3), ("Lion", 1e-4))
"""Kinds of optimizers with rates that they learn at: their states differ most from each other."""


class Killed(BaseException):
    """Ends a run as a kill does: nothing of it may save or say anything more."""


def folder_of(config: Any, name: str = "run") -> RunFolder:
    """A run's folder with its config."""
    folder = RunFolder.create(Path(config.save.output_dir).parent / "runs", name)
    write_config(config, folder.config_file)
    return folder


def train(config: Any, folder: RunFolder, *, since: Any = None, watch: Any = None) -> list[Event]:
    """The run as a job, here, to its end; `watch` sees each event and may command the job or raise Killed."""
    seen: list[Event] = []

    def look(record: EventRecord) -> None:
        seen.append(record.event)
        if watch is not None:
            watch(job, record.event)

    job = Job(start_run.training_work(config, StandaloneHost(folder.path.parent.parent), folder, resume_from=since), folder, [look])
    with contextlib.suppress(Killed):
        job.run()
    if job.error is not None:
        raise job.error
    return seen


def resume(folder: RunFolder, **wanted: Any) -> list[Event]:
    """Goes on from the last state."""
    config, since = plan_resume(folder, {path.replace("__", "."): value for path, value in wanted.items()})
    return train(config, folder, since=since)


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors bit for bit."""
    first, second = tensors_of(one), tensors_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def process(words: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """`python -m lora_trainer` with these words."""
    return subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


__all__ = ["VARIED", "Killed", "folder_of", "process", "resume", "same", "small_config", "train"]
