"""Checks before a run is resumed, or changed while it goes on: everything is validated before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.api.runs.start_run import absolute_if_exists
from lora_trainer.config import effective
from lora_trainer.config.build import apply_overrides, build, to_mapping
from lora_trainer.config.changes import Change, apply_changes
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.files import INPUT_PATHS, map_text, read_config, resolve_beside
from lora_trainer.config.live_settings import apply_live_changes
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.jobs import resume_point
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.resume_point import ResumePoint
from lora_trainer.messages import Message, say

MEMORY_OPTIONS = ("memory.gradient_checkpointing", "memory.checkpointing_budget_gb", "memory.attention", "memory.pictures_at_once")
"""Options that a resumed run may change from its first step on: they affect memory use, not what is learnt."""
SECRET_OPTIONS = tuple(path for path, declared in options().items() if declared.option.kind == "secret")
"""Options that no file holds: a resumed run is given them again."""
OUTPUT_PATHS = ("save.output_dir", "save.runs_dir", "log.logging_dir")
FOREIGN_STATE_FILES = ("train_state.json", "optimizer.bin", "optimizer.pt", "random_states_0.pkl", "scheduler.bin")
"""Files in the state folders of other trainers."""


def plan_resume(folder: RunFolder, changes: Mapping[str, Any], *, more_epochs: int = 0, beside: Path = Path()) -> tuple[TrainConfig, ResumePoint]:
    """The config that the run began with, and the point to resume from with these changes (path -> value) and `more_epochs`.

    `beside`: the folder that relative paths in `changes` may start from, besides the working directory. To be called while the run is claimed, so that no other process trains it further meanwhile. Raises TrainerError when the run has no state, ConfigError when a change is not possible or no step is left.
    """
    config = read_config(folder.config_file)
    applied_at_once = {path: value for path, value in changes.items() if path in (*MEMORY_OPTIONS, *SECRET_OPTIONS)}
    changes = {path: _with_absolute_paths(path, value, beside) for path, value in changes.items() if path not in applied_at_once}
    config = _with_options(config, applied_at_once)
    last_state = resume_point.find_resume_point(folder.path, folder.events(), {})
    current = apply_live_changes(config, last_state.changed_settings())[0]
    if more_epochs:
        changes = {**changes, **_lengthened(current, last_state, more_epochs)}
    resumed, applied = apply_live_changes(current, changes)
    total = effective.train_length(resumed, last_state.state.content["steps_per_epoch"])[1]
    if last_state.state.step >= total and folder.outcome() == "finished":
        raise ConfigError(
            [
                Problem(
                    "steps.max_train_epochs",
                    say("the run {run} has done all its {steps} steps.", run=folder.id, steps=last_state.state.step),
                    say("Give it more epochs, or start a new run."),
                )
            ]
        )
    new_values = {change["path"]: change["new"] for change in applied}
    return config, resume_point.find_resume_point(folder.path, folder.events(), new_values)


def _with_absolute_paths(path: str, value: Any, beside: Path) -> Any:
    """The value of an option that holds paths with absolute ones, as the config of a run has them; other values unchanged."""
    if path not in (*OUTPUT_PATHS, *INPUT_PATHS):
        return value
    if isinstance(value, str):
        section, _, name = path.partition(".")
        value = apply_overrides({}, [f"{path}={value}"])[section][name]
    if path in OUTPUT_PATHS:
        return map_text(value, lambda text: str(Path(text).absolute()) if text.strip() else text)
    return map_text(value, lambda text: absolute_if_exists(resolve_beside(text, beside)) if text.strip() else text)


def _with_options(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    mapping = apply_overrides(to_mapping(config), [f"{path}={value}" for path, value in changes.items() if isinstance(value, str)])
    return apply_changes(build(mapping), [Change(path, value, say("")) for path, value in changes.items() if not isinstance(value, str)])


def _lengthened(config: TrainConfig, resume_from: ResumePoint, epochs: int) -> dict[str, Any]:
    per_epoch, steps = resume_from.state.content["steps_per_epoch"], resume_from.state.step
    if config.steps.max_train_steps and not config.steps.max_train_epochs:
        return {"steps.max_train_steps": max(steps, resume_from.state.content["total_steps"]) + epochs * per_epoch}
    return {"steps.max_train_epochs": effective.train_length(config, per_epoch)[0] + epochs}


def check_change(folder: RunFolder, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The changes as [{"path", "old", "new"}]. Raises ConfigError when one is not possible."""
    config = read_config(folder.config_file)
    for change in resume_point.user_changes(folder.events()):
        config = apply_live_changes(config, {change["path"]: change["new"]})[0]
    return apply_live_changes(config, changes)[1]


def changes_from_sets(sets: list[str]) -> dict[str, Any]:
    """Arguments of the form section.name=value as {path: value}. Raises ConfigError for any other."""
    apply_overrides({}, sets)
    return {path.strip(): value.strip() for path, _, value in (text.partition("=") for text in sets)}


def refuse_foreign(run: str) -> None:
    """Raises ConfigError, with the remedy, when `run` is a weights file or another trainer's state."""
    path = Path(run)
    if path.suffix.lower() in (".safetensors", ".ckpt", ".pt"):
        raise _config_error(
            say("{path} holds weights only: optimizer and position of the run are not in it.", path=run),
            say("Give the run's folder or name. To begin a new run with these weights, set network.network_weights."),
        )
    if path.is_dir() and any((path / name).exists() for name in FOREIGN_STATE_FILES):
        raise _config_error(
            say("{path} is a state of another trainer, which kept neither epoch nor position.", path=run),
            say("Begin a new run with its last file of weights as network.network_weights."),
        )


def _config_error(message: Message, fix: Message) -> ConfigError:
    return ConfigError([Problem("RUN", message, fix)])
