"""What may be changed while a run goes on, and how a change is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.config import effective
from lora_trainer.config.build import apply_sets, rebuilt, to_mapping
from lora_trainer.config.changes import value_at, with_value
from lora_trainer.config.checks.option_checks import nearest_option, options, problem
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, Problem

SECTIONS = ("schedule.", "sample.")
"""Every option of these."""
OPTIONS = (
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


def changeable(path: str) -> bool:
    """Whether the option may be changed while a run goes on."""
    return path in OPTIONS or path.startswith(SECTIONS)


def changed(config: TrainConfig, wanted: Mapping[str, Any]) -> tuple[TrainConfig, list[dict[str, Any]]]:
    """The config with the options in `wanted` (path -> value, texts as after --set), and what that changes: {"path", "old", "new"}.

    Raises ConfigError with every option that may not be changed and every value that is wrong.
    """
    refused = [_refusal(path) for path in wanted if not changeable(path)]
    if refused:
        raise ConfigError(refused)
    mapping = apply_sets(to_mapping(config), [f"{path}={value}" for path, value in wanted.items() if isinstance(value, str)])
    new = rebuilt(config, mapping)
    for path, value in wanted.items():
        if not isinstance(value, str):
            new = with_value(new, path, value)
    refused = [_without_network(path) for path in _awoken(config, new)]
    if refused:
        raise ConfigError(refused)
    made = [{"path": path, "old": plain(config, path), "new": plain(new, path)} for path in wanted]
    return new, [change for change in made if change["old"] != change["new"]]


def plain(config: TrainConfig, path: str) -> Any:
    """An option's value as JSON can hold it."""
    value = value_at(config, path)
    return list(value) if isinstance(value, tuple) else value


def _awoken(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Parts that have no network in this run, and would get a learning rate."""
    unet = not effective.trains_unet(old) and effective.trains_unet(new)
    text = not effective.trains_text_encoder(old) and effective.trains_text_encoder(new)
    return ["optimizer.unet_lr"] * unet + ["optimizer.text_encoder_lr"] * text


def _without_network(path: str) -> Problem:
    return problem(path, "this run trains no network for that part.", "Start another run with a rate above 0 for it.")


def _refusal(path: str) -> Problem:
    if path not in options():
        return problem(path, "there is no option {path}.", "Did you mean {near}?", path=path, near=nearest_option(path))
    return problem(
        path,
        "{path} cannot be changed while a run goes on.",
        "Learning rates, schedule, length, intervals, prompts and rests can; for anything else start a new run.",
        path=path,
    )
