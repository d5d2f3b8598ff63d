"""Block 4: a pause gives the device's memory back to the byte, and a run that is saved and resumed ends as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.card.block import Block, BlockFailed, Card, Figures, relative_error, require
from benchmarks.card.precision import SAME
from benchmarks.card.runs import crescent, events_of, weights_of
from lora_trainer.api.runs import start_run
from lora_trainer.api.runs.resume import plan_resume
from lora_trainer.config.files import write_config
from lora_trainer.control import Control
from lora_trainer.events import Event, Paused, Resumed, Stepped
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs.events_log import EventRecord

PAUSE_AT, STOP_AT, STEPS = 3, 3, 6


def pause_gives_back(card: Card) -> Figures:
    """Bytes that torch holds on the device before a run, in its pause, and after it: all the same; and the pause changes no number.

    A run comes first, since CUDA's libraries keep workspaces of their own from their first use on.
    """
    changes = {"steps__max_train_steps": STEPS, "memory__mixed_precision": "auto"}
    plain = card.new_folder()
    events_of(card, crescent(plain, **changes), plain)
    card.clean()
    before, folder = _held(card), card.new_folder()
    control, in_pause, working = Control(), [], []

    def watch(event: Event) -> None:
        if isinstance(event, Stepped):
            working.append(_held(card))
            if event.step == PAUSE_AT:
                control.command("pause")
        elif isinstance(event, Paused):
            in_pause.append(_held(card))
            control.command("resume")

    events = events_of(card, crescent(folder, **changes), folder, control=control, watch=watch)
    card.clean()
    after = _held(card)
    require(sum(isinstance(event, (Paused, Resumed)) for event in events) == 2, "the run did not pause once")
    off = max(relative_error(tensor, weights_of(plain)[name]) for name, tensor in weights_of(folder).items() if tensor.numel() > 1)
    require(off <= (SAME if card.is_cuda else 0.0), f"the run with a pause ends {off:.2g} away from the one without")
    if card.is_cuda:
        require(in_pause == [before], f"in the pause {in_pause[0] - before} bytes are still held on the device")
        require(after == before, f"after the run {after - before} bytes are still held on the device")
    figures = {"before, bytes": before, "working, bytes": max(working), "in the pause": in_pause[0], "after": after, "weights apart": off}
    return figures if card.is_cuda else {"weights apart": off, "bytes on the device": "need CUDA"}


def _held(card: Card) -> int:
    return torch.cuda.memory_allocated(card.device) if card.is_cuda else 0


def resume_goes_on(card: Card) -> Figures:
    """A run that is stopped, saved and resumed: the same file as one in a piece, bit for bit on the CPU."""
    changes = {"steps__max_train_steps": STEPS, "save__state": True, "data__shuffle_caption": True}
    whole, halves = card.new_folder(), card.new_folder()
    _run(card, crescent(whole, **changes), whole)
    folder = _run(card, crescent(halves, **changes), halves, stop_at=STOP_AT)
    config, since = plan_resume(folder, {})
    _run(card, config, halves, folder=folder, since=since)
    first, second = weights_of(whole), weights_of(halves)
    off = max(relative_error(second[name], first[name]) for name in first if first[name].numel() > 1)
    equal = all(torch.equal(first[name], second[name]) for name in first)
    require(equal or card.is_cuda, "a resumed run on the CPU is not the same in every bit")
    require(off <= SAME, f"the resumed run ends {off:.2g} away from the one in a piece")
    return {"equal bits": equal, "weights apart": off}


def _run(card: Card, config: Any, place: Path, *, folder: RunFolder | None = None, since: Any = None, stop_at: int = 0) -> RunFolder:
    """The run as a job, to its end or to the step at which it is stopped."""
    if folder is None:
        folder = RunFolder.create(place / "runs", "run")
        write_config(config, folder.config_file)

    def look(record: EventRecord) -> None:
        if isinstance(record.event, Stepped) and record.event.step == stop_at:
            job.control.command("stop")

    job = Job(start_run.training_work(config, card.host(place), folder, resume_from=since), folder, [look])
    status = job.run()
    if job.error is not None:
        raise job.error
    if status.outcome != ("stopped" if stop_at else "finished"):
        raise BlockFailed(f"the run ended as {status.outcome}")
    return folder


BLOCKS = (
    Block("pause", "a pause gives back every byte of the device, and changes nothing", pause_gives_back, 10.0, 11.0),
    Block("resume", "stopped, saved and resumed: the file of a run in a piece", resume_goes_on, 8.0, 6.0),
)
