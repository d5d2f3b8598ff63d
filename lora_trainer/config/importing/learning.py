"""Translation of the optimizer, learning-rate and schedule keys of sd-scripts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.choices.optimizers import CLASS_PATH, OPTIMIZER_ALIASES, OPTIMIZER_CHOICES, SCHEDULE_ALIASES, SCHEDULE_CHOICES
from lora_trainer.config.importing.reasons import OFF, ONE_CYCLE
from lora_trainer.config.importing.values import convert, is_empty, to_number
from lora_trainer.messages import Message, say

ReadText = Callable[[str], "str | None"]
Options = list[tuple[str, Any]]
Translate = Callable[[Any, Mapping[str, Any], ReadText], "Options | Message"]

RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_YES = (True, "true", "True")


def optimizer_name(settings: Mapping[str, Any]) -> str:
    """The optimizer of a file, also by sd-scripts' old flags; AdamW if it names none."""
    if settings.get("optimizer_type"):
        return str(settings["optimizer_type"])
    return "AdamW8bit" if settings.get("use_8bit_adam") in _YES else "Lion" if settings.get("use_lion_optimizer") in _YES else "AdamW"


def find_optimizer(name: str) -> str | None:
    """Our name for sd-scripts' (case-insensitive), or the dotted path of a class; None if it is neither."""
    names = {choice.lower(): choice for choice in OPTIMIZER_CHOICES} | dict(OPTIMIZER_ALIASES)
    return names.get(name.lower()) or (name if CLASS_PATH.fullmatch(name) else None)


def optimizer(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """optimizer_type, use_8bit_adam, use_lion_optimizer."""
    if value in (False, "false", "False"):
        return OFF
    name = optimizer_name(settings)
    if (choice := find_optimizer(name)) is not None:
        return [("optimizer.type", choice)]
    return say("{name} is not supported yet: AdamW takes its place, at its own rates.", name=name)


def optimizer_option(name: str) -> Translate:
    """A rate, or arguments: taken if their optimizer is supported."""

    def take(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
        optimizer = optimizer_name(settings)
        if find_optimizer(optimizer) is None:
            return say("It belongs to the optimizer {name}, which is not supported yet.", name=optimizer)
        if name == "optimizer_args":
            return [("optimizer.args", " ".join(_split_args(value)))]
        path = f"optimizer.{name}"
        if isinstance(value, list) and name == "text_encoder_lr" and len(value) > 1:
            return [(path, [convert(rate, options()["optimizer.learning_rate"]) for rate in value])]
        return [(path, convert(value[0] if isinstance(value, list) else value, options()[path]))]

    return take


def _split_args(value: Any) -> list[str]:
    """Arguments as a list, or as one line in which each may be quoted."""
    if isinstance(value, list):
        return [str(part) for part in value if part is not None]
    try:
        return shlex.split(str(value))
    except ValueError:  # an unclosed quote
        return str(value).split()


def prodigy_arg(name: str) -> Translate:
    """One program keeps two of Prodigy's arguments apart from the others."""

    def take(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
        if is_empty(value) or find_optimizer(optimizer_name(settings)) not in ("Prodigy", "ProdigyPlus"):
            return OFF
        return say("Write {text} into the optimizer's arguments.", text=f"{name}={value}")

    return take


def train_other_part_only(path: str) -> Translate:
    """A switch that sets the other part's rate (`path`) to 0."""

    def take(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
        return [(path, 0.0)] if value in _YES else OFF

    return take


def scheduler(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lr_scheduler; lr_scheduler_type, a class, wins over it."""
    if not is_empty(settings.get("lr_scheduler_type")):
        return say("{key} wins.", key="lr_scheduler_type")
    name = SCHEDULE_ALIASES.get(str(value), str(value))
    if name == "cosine_with_restarts" and to_number(settings.get("lr_scheduler_num_cycles", settings.get("lr_restart_cycles", 1))) <= 1:
        return [("schedule.type", "cosine")]
    if name in SCHEDULE_CHOICES or CLASS_PATH.fullmatch(name):
        return [("schedule.type", name)]
    return say("The schedule {name} is not supported yet.", name=name)


def scheduler_class(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lr_scheduler_type: a class, of torch if no package is given."""
    name = str(value)
    return [("schedule.type", name if CLASS_PATH.fullmatch(name) else f"torch.optim.lr_scheduler.{name}")]


def scheduler_args(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lr_scheduler_args."""
    return [("schedule.args", " ".join(_split_args(value)))]


def num_cycles(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lr_scheduler_num_cycles; a single cycle needs no option."""
    return [("schedule.num_cycles", float(to_number(value)))] if to_number(value) > 1 else ONE_CYCLE


def warmup_steps(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lr_warmup_steps: steps, or below 1 a share of all steps."""
    if settings.get("lr_scheduler", "constant") == "constant" and to_number(value):
        return say("sd-scripts does no warm-up with the schedule constant.")
    return [("schedule.warmup_steps", _steps(value))]


def decay_steps(value: Any, settings: Mapping[str, Any], read: ReadText) -> Options | Message:
    """lr_decay_steps, in the same form as the warm-up."""
    if settings.get("lr_scheduler") != "warmup_stable_decay":
        return OFF if not to_number(value) else say("sd-scripts uses it only with the schedule {name}.", name="warmup_stable_decay")
    return [("schedule.decay_steps", _steps(value))]


def _steps(value: Any) -> int | str:
    is_share = isinstance(value, float) and 0 < value < 1
    if isinstance(value, str) and not value.strip().endswith("%"):
        is_share = "." in value and 0 < to_number(value) < 1
        value = to_number(value)
    return f"{value * 100:g}%" if is_share else value if isinstance(value, str) else int(value)


LEARNING: dict[str, Translate] = {
    "optimizer_type": optimizer,
    "use_8bit_adam": optimizer,
    "use_lion_optimizer": optimizer,
    "optimizer_args": optimizer_option("optimizer_args"),
    **{name: optimizer_option(name) for name in RATES},
    "prodigy_d0": prodigy_arg("d0"),
    "prodigy_d_coef": prodigy_arg("d_coef"),
    "network_train_unet_only": train_other_part_only("optimizer.text_encoder_lr"),
    "network_train_text_encoder_only": train_other_part_only("optimizer.unet_lr"),
    "lr_scheduler": scheduler,
    "lr_scheduler_type": scheduler_class,
    "lr_scheduler_args": scheduler_args,
    "lr_scheduler_num_cycles": num_cycles,
    "lr_restart_cycles": num_cycles,
    "lr_warmup_steps": warmup_steps,
    "lr_decay_steps": decay_steps,
}
