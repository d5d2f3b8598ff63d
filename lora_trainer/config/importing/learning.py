"""Keys of optimizer, learning rates and schedule under the names of sd-scripts' command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.choices.optimizers import OPTIMIZER_ALSO, OPTIMIZER_CHOICES, PATH, SCHEDULE_ALSO, SCHEDULE_CHOICES
from lora_trainer.config.importing.reasons import OFF
from lora_trainer.config.importing.values import brought, is_empty, number
from lora_trainer.messages import Message, say

Read = Callable[[str], "str | None"]
Options = list[tuple[str, Any]]
Take = Callable[[Any, Mapping[str, Any], Read], "Options | Message"]

RATES = ("learning_rate", "unet_lr", "text_encoder_lr")
LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_YES = (True, "true", "True")


def optimizer_name(given: Mapping[str, Any]) -> str:
    """The optimizer that a file means, by its flags of old too; AdamW where it says nothing."""
    if given.get("optimizer_type"):
        return str(given["optimizer_type"])
    return "AdamW8bit" if given.get("use_8bit_adam") in _YES else "Lion" if given.get("use_lion_optimizer") in _YES else "AdamW"


def known_optimizer(name: str) -> str | None:
    """Our name for sd-scripts' (which ignores case), or the dotted name of a class; None where it is neither."""
    known = {choice.lower(): choice for choice in OPTIMIZER_CHOICES} | dict(OPTIMIZER_ALSO)
    return known.get(name.lower()) or (name if PATH.fullmatch(name) else None)


def optimizer(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """optimizer_type, use_8bit_adam, use_lion_optimizer."""
    if value in (False, "false", "False"):
        return OFF
    name = optimizer_name(given)
    if (choice := known_optimizer(name)) is not None:
        return [("optimizer.type", choice)]
    return say("{name} is not here yet: AdamW takes its place, at its own rates.", name=name)


def of_optimizer(name: str) -> Take:
    """A rate, or arguments: taken where the optimizer that they are for is here."""

    def take(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
        optimizer = optimizer_name(given)
        if known_optimizer(optimizer) is None:
            return say("It belongs to the optimizer {name}, which is not here yet.", name=optimizer)
        if name == "optimizer_args":
            return [("optimizer.args", " ".join(_words(value)))]
        path = f"optimizer.{name}"
        if isinstance(value, list) and name == "text_encoder_lr" and len(value) > 1:
            return [(path, [brought(rate, options()["optimizer.learning_rate"]) for rate in value])]
        return [(path, brought(value[0] if isinstance(value, list) else value, options()[path]))]

    return take


def _words(value: Any) -> list[str]:
    """Arguments as a list, or as one line in which each may stand between quotes."""
    if isinstance(value, list):
        return [str(part) for part in value]
    try:
        return shlex.split(str(value))
    except ValueError:  # a quote without its end
        return str(value).split()


def of_prodigy(name: str) -> Take:
    """One program keeps two of Prodigy's arguments apart from the others."""

    def take(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
        if is_empty(value) or known_optimizer(optimizer_name(given)) not in ("Prodigy", "ProdigyPlus"):
            return OFF
        return say("Write {text} into the optimizer's arguments.", text=f"{name}={value}")

    return take


def only(path: str) -> Take:
    """A switch that leaves the other part of the network untrained."""

    def take(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
        return [(path, 0.0)] if value in _YES else OFF

    return take


def scheduler(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lr_scheduler; lr_scheduler_type, a class, wins over it."""
    if not is_empty(given.get("lr_scheduler_type")):
        return say("{key} wins.", key="lr_scheduler_type")
    name = SCHEDULE_ALSO.get(str(value), str(value))
    if name == "cosine_with_restarts" and number(given.get("lr_scheduler_num_cycles", given.get("lr_restart_cycles", 1))) <= 1:
        return [("schedule.type", "cosine")]
    if name in SCHEDULE_CHOICES or PATH.fullmatch(name):
        return [("schedule.type", name)]
    return say("The schedule {name} is not here yet.", name=name)


def scheduler_class(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lr_scheduler_type: a class, of torch where no package stands before it."""
    name = str(value)
    return [("schedule.type", name if PATH.fullmatch(name) else f"torch.optim.lr_scheduler.{name}")]


def scheduler_args(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lr_scheduler_args."""
    return [("schedule.args", " ".join(_words(value)))]


def cycles(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lr_scheduler_num_cycles; of one there is nothing to say."""
    return [("schedule.num_cycles", float(number(value)))] if number(value) > 1 else OFF


def warmup(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lr_warmup_steps: steps, or below 1 a share of all."""
    if given.get("lr_scheduler", "constant") == "constant" and number(value):
        return say("sd-scripts warms nothing up with the schedule constant.")
    return [("schedule.warmup_steps", _steps(value))]


def decay(value: Any, given: Mapping[str, Any], read: Read) -> Options | Message:
    """lr_decay_steps, written as the warm-up is."""
    if given.get("lr_scheduler") != "warmup_stable_decay":
        return OFF if not number(value) else say("sd-scripts uses it only with the schedule {name}.", name="warmup_stable_decay")
    return [("schedule.decay_steps", _steps(value))]


def _steps(value: Any) -> int | str:
    share = isinstance(value, float) and 0 < value < 1
    if isinstance(value, str) and not value.strip().endswith("%"):
        share = "." in value and 0 < number(value) < 1
        value = number(value)
    return f"{value * 100:g}%" if share else value if isinstance(value, str) else int(value)


LEARNING: dict[str, Take] = {
    "optimizer_type": optimizer,
    "use_8bit_adam": optimizer,
    "use_lion_optimizer": optimizer,
    "optimizer_args": of_optimizer("optimizer_args"),
    **{name: of_optimizer(name) for name in RATES},
    "prodigy_d0": of_prodigy("d0"),
    "prodigy_d_coef": of_prodigy("d_coef"),
    "network_train_unet_only": only("optimizer.text_encoder_lr"),
    "network_train_text_encoder_only": only("optimizer.unet_lr"),
    "lr_scheduler": scheduler,
    "lr_scheduler_type": scheduler_class,
    "lr_scheduler_args": scheduler_args,
    "lr_scheduler_num_cycles": cycles,
    "lr_restart_cycles": cycles,
    "lr_warmup_steps": warmup,
    "lr_decay_steps": decay,
}
