"""Settings that may be changed during a run, and how a change is applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.config import effective
from lora_trainer.config.build import apply_overrides, rebuild, to_mapping
from lora_trainer.config.changes import value_at, with_value
from lora_trainer.config.checks.option_checks import nearest_option, options, problem
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, Problem

LIVE_SECTIONS = ("schedule.", "sample.")
"""All options of these sections."""
LIVE_OPTIONS = (
    "optimizer.learning_rate",
    "optimizer.unet_lr",
    "optimizer.text_encoder_lr",
    "optimizer.max_grad_norm",
    "steps.max_train_epochs",
    "steps.max_train_steps",
    "steps.pause_after_n_epochs",
    "steps.pause_seconds",
    "validate.every_n_epochs",
    "validate.every_n_steps",
    "validate.early_stop_patience",
    "save.every_n_epochs",
    "save.every_n_steps",
    "save.state_every_n_steps",
    "save.state_every_minutes",
    "save.last_n_states",
)


def is_changeable(path: str) -> bool:
    """Whether the option may be changed during a run."""
    return path in LIVE_OPTIONS or path.startswith(LIVE_SECTIONS)


def apply_live_changes(config: TrainConfig, values: Mapping[str, Any]) -> tuple[TrainConfig, list[dict[str, Any]]]:
    """The config with `values` (path -> value; text is parsed as after --set) applied, and the changes: {"path", "old", "new"}.

    A value that is the same as before is no change, of any option. Raises ConfigError with every option that may not be changed and
    every value that is wrong.
    """
    problems = [_not_changeable_problem(path) for path in values if path not in options()]
    if problems:
        raise ConfigError(problems)
    mapping = apply_overrides(to_mapping(config), [f"{path}={value}" for path, value in values.items() if isinstance(value, str)])
    new = rebuild(config, mapping)
    for path, value in values.items():
        if not isinstance(value, str):
            new = with_value(new, path, value)
    all_values = [{"path": path, "old": plain_value(config, path), "new": plain_value(new, path)} for path in values]
    changes = [change for change in all_values if change["old"] != change["new"]]
    problems = [_not_changeable_problem(change["path"]) for change in changes if not is_changeable(change["path"])]
    problems = problems or [_untrained_part_problem(path) for path in _newly_trained(config, new)]
    if problems:
        raise ConfigError(problems)
    return new, changes


def plain_value(config: TrainConfig, path: str) -> Any:
    """An option's value in JSON types."""
    value = value_at(config, path)
    return list(value) if isinstance(value, tuple) else value


def _newly_trained(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Options that would start training a part which has no network in this run."""
    gains_unet = not effective.trains_unet(old) and effective.trains_unet(new)
    gains_text_encoder = not effective.trains_text_encoder(old) and effective.trains_text_encoder(new)
    return ["optimizer.unet_lr"] * gains_unet + ["optimizer.text_encoder_lr"] * gains_text_encoder


def _untrained_part_problem(path: str) -> Problem:
    return problem(path, "this run trains no network for that part.", "Start another run with a rate above 0 for it.")


def _not_changeable_problem(path: str) -> Problem:
    if path not in options():
        return problem(path, "there is no option {path}.", "Did you mean {near}?", path=path, near=nearest_option(path))
    return problem(
        path,
        "{path} cannot be changed while a run goes on.",
        "Learning rates, schedule, length, intervals, prompts and rests can; for anything else start a new run.",
        path=path,
    )
