"""How the learning rates of a run that goes on, or went on, are planned: its settings with what was changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lora_trainer.config import effective
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import read_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.resume_point import changes_of

DECIDING = ("optimizer", "schedule", "steps")
"""Sections that decide on the rates."""


def course(folder: RunFolder) -> dict[str, Any]:
    """{"total_steps", "epochs", "schedule": {group: [[step, rate], ...]}} of a run as it is planned now. Raises TrainerError."""
    from lora_trainer.optim.schedules import curve, schedule_of

    plan = folder.plan()
    config = with_changes(read_config(folder.config_file), folder.events())
    epochs, total = effective.train_length(config, int(plan.get("steps_per_epoch") or 0))
    if not plan or total < 1:
        return {"total_steps": 0, "epochs": 0, "schedule": {}}
    warmup, decay = effective.warmup_steps(config, total), effective.decay_steps(config, total)
    schedule, scale = schedule_of(config.schedule, total, warmup, decay), float(plan.get("rate_scale") or 1.0)
    curves = {name: curve(schedule, rate * scale) for name, rate in effective.rates(config).items()}
    return {"total_steps": total, "epochs": epochs, "schedule": curves}


def with_changes(config: TrainConfig, events: Iterable[Mapping[str, Any]]) -> TrainConfig:
    """The config with the changes that events tell of, as far as they decide on the rates."""
    mapping = to_mapping(config)
    for change in changes_of(events):
        section, _, name = str(change["path"]).partition(".")
        if section in DECIDING:
            mapping[section][name] = change["new"]
    return build(mapping)
