"""Optimizers and schedules by the dotted path of a class in an installed package; nothing but such classes is ever called."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from lora_trainer.config.choices.optimizers import OPTIMIZER_SPECS
from lora_trainer.errors import MissingPackage, TrainerError
from lora_trainer.install_command import install_command


def class_at(path: str, base: type, option: str) -> Any:
    """The class at a path like `torch.optim.RMSprop`; `option`: the config's option, for errors.

    Raises TrainerError where it is not a subclass of `base`, MissingPackage with the pip command.
    """
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        package = path.partition(".")[0]
        if package not in sys.modules and (error.name or "").partition(".")[0] == package:
            pip_name = next((spec.pip_name for spec in OPTIMIZER_SPECS if spec.package == package), package.replace("_", "-"))
            raise MissingPackage(
                "{name} needs the package {package}, which is not installed.",
                path=option,
                name=path,
                package=pip_name,
                command=install_command(pip_name),
                fix="Install it into the Python that runs this: {command}",
            ) from error
        raise _unknown_class(path, option) from error
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise _unknown_class(path, option)
    return cls


def _unknown_class(path: str, option: str) -> TrainerError:
    if option.startswith("optimizer"):
        return TrainerError(
            "{name} is not an optimizer of an installed package.",
            path=option,
            name=path,
            fix="Choose one of the list, or write the whole name of a class, for example torch.optim.RMSprop.",
        )
    return TrainerError(
        "{name} is not a schedule of an installed package.",
        path=option,
        name=path,
        fix="Choose one of the list, or write the whole name of a class, for example torch.optim.lr_scheduler.OneCycleLR.",
    )


def schedule_factors(path: str, options: Mapping[str, Any], steps: int) -> list[float]:
    """The learning rate factors of a torch scheduler class for each step. Raises TrainerError for an unknown class or wrong options."""
    import torch

    base = getattr(torch.optim.lr_scheduler, "LRScheduler", None) or torch.optim.lr_scheduler._LRScheduler
    scheduler_class = class_at(path, base, "schedule.type")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)  # some schedulers set the momentum too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = scheduler_class(optimizer, **options)
            factors = []
            for _ in range(max(1, steps)):
                factors.append(float(optimizer.param_groups[0]["lr"]))
                optimizer.step()
                scheduler.step()
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise TrainerError(
            "{name} does not take these arguments: {reason}.",
            path="schedule.args",
            name=path,
            reason=str(error),
            fix="Correct the field; steps={steps} fills the run.",
            steps=steps,
        ) from error
    return factors
