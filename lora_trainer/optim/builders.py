"""Builds optimizers by name; a package is imported only when its optimizer is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lora_trainer.config.choices.optimizers import CLASS_PATH, optimizer_spec
from lora_trainer.errors import MissingPackage
from lora_trainer.install_command import install_command
from lora_trainer.optim.dotted_class import class_at
from lora_trainer.registry import Choice, Registry

Groups = list[dict[str, Any]]
Build = Callable[[Groups, Mapping[str, Any]], torch.optim.Optimizer]

OPTIMIZERS: Registry[Build] = Registry("optimizer")


def optimizer_choice(name: str) -> Choice[Build]:
    """The registry's choice for `name`, or for the dotted path of a class. Raises TrainerError, or MissingPackage with the pip command."""
    if CLASS_PATH.fullmatch(name):
        optimizer_class = class_at(name, torch.optim.Optimizer, "optimizer.type")
        return Choice(name, name, lambda groups, options: optimizer_class(groups, lr=_max_lr(groups), **options))
    try:
        return OPTIMIZERS[name]
    except MissingPackage as error:
        spec = optimizer_spec(name)
        raise MissingPackage(
            "{name} needs the package {package}, which is not installed.",
            path="optimizer.type",
            name=spec.name,
            package=spec.pip_name,
            command=install_command(spec.pip_name),
            fix="Install it into the Python that runs this: {command}",
        ) from error


def _register(name: str) -> Callable[[Build], Build]:
    spec = optimizer_spec(name)
    return OPTIMIZERS.add(name, spec.label, requires=spec.package)


def _max_lr(groups: Groups) -> float:
    """The highest learning rate of the groups; where all are 0, 1e-4, since some constructors refuse 0."""
    return max(float(group["lr"]) for group in groups) or 1e-4


@_register("AdamW")
def adamw(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's AdamW (Loshchilov & Hutter 2019), fused where this torch supports it."""
    try:
        copies = [dict(group) for group in groups]  # torch writes its options into the groups
        return torch.optim.AdamW(copies, fused=True, **options)
    except (RuntimeError, TypeError):  # torch 2.1 has no fused AdamW on the CPU
        return torch.optim.AdamW(groups, foreach=False, **options)


@_register("SGD")
def sgd(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's SGD, with momentum 0.9 by default."""
    return torch.optim.SGD(groups, lr=_max_lr(groups), **({"momentum": 0.9} | options))


@_register("SGDNesterov")
def nesterov(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's SGD with Nesterov momentum, 0.9 by default, as in sd-scripts."""
    return torch.optim.SGD(groups, lr=_max_lr(groups), **({"momentum": 0.9, "nesterov": True} | options))


@_register("AdaFactor")
def adafactor(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """transformers' Adafactor (Shazeer & Stern 2018), with its own learning rates unless relative_step=False, as in sd-scripts."""
    from transformers.optimization import Adafactor

    arguments = {"relative_step": True} | options
    if arguments.get("warmup_init"):
        arguments["relative_step"] = True
    return Adafactor(groups, lr=None if arguments["relative_step"] else _max_lr(groups), **arguments)  # type: ignore[no-any-return]


def _register_class(name: str, package: str, cls: str, **defaults: Any) -> None:
    """Registers a class whose constructor takes (groups, lr=..., **options) as torch's do; `defaults` are overridden by the options."""

    @_register(name)
    def make(groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer_class = getattr(importlib.import_module(package), cls)
        return optimizer_class(groups, lr=_max_lr(groups), **(defaults | dict(options)))  # type: ignore[no-any-return]


_register_class("AdamW8bit", "bitsandbytes.optim", "AdamW8bit")
_register_class("PagedAdamW8bit", "bitsandbytes.optim", "PagedAdamW8bit")
_register_class("PagedAdamW", "bitsandbytes.optim", "PagedAdamW")
_register_class("Lion", "lion_pytorch", "Lion")
_register_class("Lion8bit", "bitsandbytes.optim", "Lion8bit")
_register_class("PagedLion8bit", "bitsandbytes.optim", "PagedLion8bit")
_register_class("SGDNesterov8bit", "bitsandbytes.optim", "SGD8bit", momentum=0.9, nesterov=True)
_register_class("Prodigy", "prodigyopt", "Prodigy")
_register_class("ProdigyPlus", "prodigyplus", "ProdigyPlusScheduleFree")
_register_class("DAdaptation", "dadaptation.experimental", "DAdaptAdamPreprint")
_register_class("DAdaptAdam", "dadaptation", "DAdaptAdam")
_register_class("DAdaptAdaGrad", "dadaptation", "DAdaptAdaGrad")
_register_class("DAdaptAdan", "dadaptation", "DAdaptAdan")
_register_class("DAdaptAdanIP", "dadaptation.experimental", "DAdaptAdanIP")
_register_class("DAdaptLion", "dadaptation", "DAdaptLion")
_register_class("DAdaptSGD", "dadaptation", "DAdaptSGD")
_register_class("AdamWScheduleFree", "schedulefree", "AdamWScheduleFree")
_register_class("RAdamScheduleFree", "schedulefree", "RAdamScheduleFree")
_register_class("SGDScheduleFree", "schedulefree", "SGDScheduleFree")
_register_class("CAME", "came_pytorch.CAME", "CAME")
_register_class("LAMB", "pytorch_optimizer", "Lamb")
