"""How each optimizer is built; its package is imported only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lora_trainer.config.choices.optimizers import PATH, optimizer_named
from lora_trainer.errors import MissingPackage
from lora_trainer.optim.dotted_class import class_at
from lora_trainer.registry import Choice, Registry

Groups = list[dict[str, Any]]
Make = Callable[[Groups, Mapping[str, Any]], torch.optim.Optimizer]

OPTIMIZERS: Registry[Make] = Registry("optimizer")


def maker(name: str) -> Choice[Make]:
    """How to build `name`: one of ours, or a class by its dotted path. Raises TrainerError, MissingPackage with the command."""
    if PATH.fullmatch(name):
        found = class_at(name, torch.optim.Optimizer, "optimizer.type")
        return Choice(name, name, lambda groups, options: found(groups, lr=_rate(groups), **options))
    try:
        return OPTIMIZERS[name]
    except MissingPackage as error:
        known = optimizer_named(name)
        raise MissingPackage(
            "{name} needs the package {package}, which is not installed.",
            path="optimizer.type",
            name=known.name,
            package=known.pip,
            fix="Install it into the Python that runs this: pip install {package}",
        ) from error


def _add(name: str) -> Callable[[Make], Make]:
    known = optimizer_named(name)
    return OPTIMIZERS.add(name, known.label, requires=known.package)


def _rate(groups: Groups) -> float:
    """The highest rate of the groups; where all are 0 the 1e-4 that no constructor refuses."""
    return max(float(group["lr"]) for group in groups) or 1e-4


@_add("AdamW")
def adamw(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's AdamW (Loshchilov & Hutter 2019), fused where this torch can."""
    try:
        return torch.optim.AdamW([dict(group) for group in groups], fused=True, **options)  # it writes its options into what it is given
    except (RuntimeError, TypeError):  # torch 2.1 has no fused AdamW on the CPU
        return torch.optim.AdamW(groups, foreach=False, **options)


@_add("SGD")
def sgd(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Gradient descent with a momentum of 0.9 where none is given."""
    return torch.optim.SGD(groups, lr=_rate(groups), **({"momentum": 0.9} | options))


@_add("SGDNesterov")
def nesterov(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Gradient descent with Nesterov's momentum, 0.9 where none is given (as sd-scripts has it)."""
    return torch.optim.SGD(groups, lr=_rate(groups), **({"momentum": 0.9, "nesterov": True} | options))


@_add("AdaFactor")
def adafactor(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """transformers' (Shazeer & Stern 2018): it makes its own rates, unless relative_step=False (as sd-scripts has it)."""
    from transformers.optimization import Adafactor

    given = {"relative_step": True} | options
    if given.get("warmup_init"):
        given["relative_step"] = True
    return Adafactor(groups, lr=None if given["relative_step"] else _rate(groups), **given)  # type: ignore[no-any-return]


def _plainly(name: str, package: str, cls: str, **defaults: Any) -> None:
    """Registers a class that takes (groups, lr, options) as torch's own do, with `defaults` where the options say nothing."""

    @_add(name)
    def make(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
        made = getattr(importlib.import_module(package), cls)
        return made(groups, lr=_rate(groups), **(defaults | dict(options)))  # type: ignore[no-any-return]


_plainly("AdamW8bit", "bitsandbytes.optim", "AdamW8bit")
_plainly("PagedAdamW8bit", "bitsandbytes.optim", "PagedAdamW8bit")
_plainly("PagedAdamW", "bitsandbytes.optim", "PagedAdamW")
_plainly("Lion", "lion_pytorch", "Lion")
_plainly("Lion8bit", "bitsandbytes.optim", "Lion8bit")
_plainly("PagedLion8bit", "bitsandbytes.optim", "PagedLion8bit")
_plainly("SGDNesterov8bit", "bitsandbytes.optim", "SGD8bit", momentum=0.9, nesterov=True)
_plainly("Prodigy", "prodigyopt", "Prodigy")
_plainly("ProdigyPlus", "prodigyplus", "ProdigyPlusScheduleFree")
_plainly("DAdaptation", "dadaptation.experimental", "DAdaptAdamPreprint")
_plainly("DAdaptAdam", "dadaptation", "DAdaptAdam")
_plainly("DAdaptAdaGrad", "dadaptation", "DAdaptAdaGrad")
_plainly("DAdaptAdan", "dadaptation", "DAdaptAdan")
_plainly("DAdaptAdanIP", "dadaptation.experimental", "DAdaptAdanIP")
_plainly("DAdaptLion", "dadaptation", "DAdaptLion")
_plainly("DAdaptSGD", "dadaptation", "DAdaptSGD")
_plainly("AdamWScheduleFree", "schedulefree", "AdamWScheduleFree")
_plainly("RAdamScheduleFree", "schedulefree", "RAdamScheduleFree")
_plainly("SGDScheduleFree", "schedulefree", "SGDScheduleFree")
_plainly("CAME", "came_pytorch.CAME", "CAME")
_plainly("LAMB", "pytorch_optimizer", "Lamb")
