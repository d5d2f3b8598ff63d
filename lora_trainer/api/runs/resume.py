"""Going on with a run from what it kept, and changing one that goes on: what is asked is looked at before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.config import effective
from lora_trainer.config.build import apply_sets, build, to_mapping
from lora_trainer.config.changes import Change, apply_changes
from lora_trainer.config.files import read_config
from lora_trainer.config.live_settings import changed
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, HostBusy, Problem
from lora_trainer.jobs import resume_point
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.resume_point import ResumePoint
from lora_trainer.messages import Message, say

SPARING = ("memory.gradient_checkpointing", "memory.checkpointing_budget_gb", "memory.attention", "memory.pictures_at_once")
"""What a resumed run may have otherwise from its first step on: how memory is used, not what is learnt."""
FOREIGN = ("train_state.json", "optimizer.bin", "optimizer.pt", "random_states_0.pkl", "scheduler.bin")
"""In the state folders of other trainers."""


def resuming(folder: RunFolder, wanted: Mapping[str, Any], *, more_epochs: int = 0) -> tuple[TrainConfig, ResumePoint]:
    """What the run began with, and where it goes on with `wanted` changes (path -> value) and so many epochs more.

    Raises TrainerError when it has no state, ConfigError when a change is not possible or there is nothing left to do.
    """
    config = _sparing(read_config(folder.config_file), {path: value for path, value in wanted.items() if path in SPARING})
    wanted = {path: value for path, value in wanted.items() if path not in SPARING}
    found = resume_point.since(folder.path, folder.events(), {})
    now = changed(config, found.settings())[0]
    if more_epochs:
        wanted = {**wanted, **_longer(now, found, more_epochs)}
    new, made = changed(now, wanted)
    total = effective.train_length(new, found.kept.plain["steps_per_epoch"])[1]
    if found.kept.step >= total and folder.outcome() == "finished":
        raise ConfigError(
            [
                Problem(
                    "steps.max_train_epochs",
                    say("the run {run} has done all its {steps} steps.", run=folder.id, steps=found.kept.step),
                    say("Give it more epochs, or start a new run."),
                )
            ]
        )
    more = {change["path"]: change["new"] for change in made}
    return config, resume_point.since(folder.path, folder.events(), more)


def _sparing(config: TrainConfig, wanted: Mapping[str, Any]) -> TrainConfig:
    mapping = apply_sets(to_mapping(config), [f"{path}={value}" for path, value in wanted.items() if isinstance(value, str)])
    return apply_changes(build(mapping), [Change(path, value, say("")) for path, value in wanted.items() if not isinstance(value, str)])


def _longer(config: TrainConfig, found: ResumePoint, epochs: int) -> dict[str, Any]:
    per_epoch, steps = found.kept.plain["steps_per_epoch"], found.kept.step
    if config.steps.max_train_steps and not config.steps.max_train_epochs:
        return {"steps.max_train_steps": max(steps, found.kept.plain["total_steps"]) + epochs * per_epoch}
    return {"steps.max_train_epochs": effective.train_length(config, per_epoch)[0] + epochs}


def check_change(folder: RunFolder, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the changes would change, as {"path", "old", "new"}. Raises ConfigError when one is not possible."""
    config = read_config(folder.config_file)
    for one in resume_point.changes_of(folder.events()):
        config = changed(config, {one["path"]: one["new"]})[0]
    return changed(config, wanted)[1]


def wanted_by(sets: list[str]) -> dict[str, Any]:
    """Words of the form section.name=value as {path: value}. Raises ConfigError for another word."""
    apply_sets({}, sets)
    return {path.strip(): value.strip() for path, _, value in (text.partition("=") for text in sets)}


def refuse_foreign(text: str) -> None:
    """Raises ConfigError, with the remedy, where a file of weights or another trainer's state is given instead of a run."""
    path = Path(text)
    if path.suffix.lower() in (".safetensors", ".ckpt", ".pt"):
        raise _wrong(
            say("{path} holds weights only: optimizer and position of the run are not in it.", path=text),
            say("Give the run's folder or name. To begin a new run with these weights, set network.network_weights."),
        )
    if path.is_dir() and any((path / name).exists() for name in FOREIGN):
        raise _wrong(
            say("{path} is a state of another trainer, which kept neither epoch nor position.", path=text),
            say("Begin a new run with its last file of weights as network.network_weights."),
        )


def refuse_running(folder: RunFolder, *, here: bool = False) -> None:
    """Raises HostBusy while somebody trains the run."""
    if here or folder.alive():
        raise HostBusy("the run {run} is still going on.", run=folder.id, path="run", fix="Stop it, or wait until it has ended.")


def _wrong(message: Message, fix: Message) -> ConfigError:
    return ConfigError([Problem("RUN", message, fix)])
