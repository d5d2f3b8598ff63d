"""Optimizers and schedules that are a class of some installed package: found by their dotted path, and nothing else is ever called."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from lora_trainer.errors import MissingPackage, TrainerError


def class_at(path: str, base: type, option: str) -> Any:
    """The class at `torch.optim.RMSprop`. Raises TrainerError unless it is derived from `base`, MissingPackage with the command."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        package = path.partition(".")[0]
        if package not in sys.modules and (error.name or "").partition(".")[0] == package:
            raise MissingPackage(
                "{name} needs the package {package}, which is not installed.",
                path=option,
                name=path,
                package=package.replace("_", "-"),
                fix="Install it into the Python that runs this: pip install {package}",
            ) from error
        raise _unknown(path, option) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise _unknown(path, option)
    return found


def _unknown(path: str, option: str) -> TrainerError:
    if option.startswith("optimizer"):
        return TrainerError(
            "{name} is no optimizer of an installed package.",
            path=option,
            name=path,
            fix="Choose one of the list, or write the whole name of a class, for example torch.optim.RMSprop.",
        )
    return TrainerError(
        "{name} is no schedule of an installed package.",
        path=option,
        name=path,
        fix="Choose one of the list, or write the whole name of a class, for example torch.optim.lr_scheduler.OneCycleLR.",
    )


def schedule_table(path: str, options: Mapping[str, Any], steps: int) -> list[float]:
    """The shares of the rate that a torch schedule gives for so many steps. Raises TrainerError for a class or options that do not fit."""
    import torch

    base = getattr(torch.optim.lr_scheduler, "LRScheduler", None) or torch.optim.lr_scheduler._LRScheduler
    made = class_at(path, base, "schedule.type")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)  # some schedules set a momentum too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = made(optimizer, **options)
            table = []
            for _ in range(max(1, steps)):
                table.append(float(optimizer.param_groups[0]["lr"]))
                optimizer.step()
                schedule.step()
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise TrainerError(
            "{name} does not take these arguments: {reason}.",
            path="schedule.args",
            name=path,
            reason=str(error),
            fix="Correct the field; steps={steps} fills the run.",
            steps=steps,
        ) from error
    return table
