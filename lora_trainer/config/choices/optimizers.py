"""Optimizers and schedules by name: the facts that UI, plan and learning-rate checks need (no torch)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""The dotted path of a class of any installed package: torch.optim.RMSprop."""


@attrs.frozen
class RateRange:
    """Learning rates of a family of optimizers for a LoRA: `low` to `high` is sensible, `hint` is a good start."""

    low: float
    high: float
    hint: float


ADAM = RateRange(1e-7, 1e-2, 1e-4)
LION = RateRange(1e-8, 1e-3, 3e-5)
SGD = RateRange(1e-3, 10.0, 0.1)
SCHEDULE_FREE = RateRange(1e-7, 2e-2, 5e-4)
SCALED = RateRange(1e-6, 5e-2, 1e-3)
ADAPTIVE = RateRange(0.1, 5.0, 1.0)


@attrs.frozen
class OptimizerSpec:
    """`package` is the module to import, `pip_name` its name for pip; `state_bytes` of optimizer state per parameter.

    `elementwise`: each element is updated independently, so all parameters may share one buffer. `single_rate`: no different rates.
    `schedule_free`: averages the weights itself and needs a constant schedule. `adaptive`: estimates its step size, rates scale it.
    """

    name: str
    label: str
    rate_range: RateRange
    package: str = ""
    pip_name: str = ""
    state_bytes: float = 8.0
    elementwise: bool = False
    single_rate: bool = False
    schedule_free: bool = False
    adaptive: bool = False
    aliases: tuple[str, ...] = ()
    fallback: str = ""
    """The optimizer with the same update that needs more memory, if this one does not work."""


def _bitsandbytes(name: str, label: str, rate_range: RateRange, state_bytes: float, fallback: str, *aliases: str) -> OptimizerSpec:
    return OptimizerSpec(name, label, rate_range, "bitsandbytes", "bitsandbytes", state_bytes, aliases=aliases, fallback=fallback)


def _d_adaptation(name: str, label: str, state_bytes: float, *aliases: str, elementwise: bool = True) -> OptimizerSpec:
    return OptimizerSpec(
        name, label, ADAPTIVE, "dadaptation", "dadaptation", state_bytes, elementwise, single_rate=True, adaptive=True, aliases=aliases
    )


def _schedule_free(name: str, label: str, rate_range: RateRange, state_bytes: float) -> OptimizerSpec:
    return OptimizerSpec(
        name, label, rate_range, "schedulefree", "schedulefree", state_bytes, True, schedule_free=True, aliases=(f"schedulefree.{name}",)
    )


OPTIMIZER_SPECS = (
    OptimizerSpec("AdamW", "AdamW", ADAM, elementwise=True, aliases=("torch.optim.AdamW",)),
    _bitsandbytes("AdamW8bit", "AdamW, 8 bit", ADAM, 2.0, "AdamW", "bitsandbytes.optim.AdamW8bit"),
    _bitsandbytes("PagedAdamW8bit", "AdamW, 8 bit, paged", ADAM, 2.0, "AdamW", "bitsandbytes.optim.PagedAdamW8bit"),
    _bitsandbytes("PagedAdamW", "AdamW, paged", ADAM, 8.0, "AdamW", "PagedAdamW32bit", "bitsandbytes.optim.PagedAdamW"),
    OptimizerSpec("Lion", "Lion", LION, "lion_pytorch", "lion-pytorch", 4.0, True, aliases=("lion_pytorch.Lion",)),
    _bitsandbytes("Lion8bit", "Lion, 8 bit", LION, 1.0, "Lion", "bitsandbytes.optim.Lion8bit"),
    _bitsandbytes("PagedLion8bit", "Lion, 8 bit, paged", LION, 1.0, "Lion", "bitsandbytes.optim.PagedLion8bit"),
    OptimizerSpec("SGD", "SGD", SGD, state_bytes=4.0, elementwise=True, aliases=("torch.optim.SGD",)),
    OptimizerSpec("SGDNesterov", "SGD, Nesterov", SGD, state_bytes=4.0, elementwise=True),
    _bitsandbytes("SGDNesterov8bit", "SGD, Nesterov, 8 bit", SGD, 1.0, "SGDNesterov"),
    OptimizerSpec(
        "AdaFactor",
        "AdaFactor",
        ADAM,
        "transformers",
        "transformers",
        0.2,
        aliases=("transformers.optimization.Adafactor", "transformers.Adafactor"),
    ),
    OptimizerSpec(
        "Prodigy",
        "Prodigy",
        ADAPTIVE,
        "prodigyopt",
        "prodigyopt",
        16.0,
        True,
        single_rate=True,
        adaptive=True,
        aliases=("prodigyopt.Prodigy",),
    ),
    OptimizerSpec(
        "ProdigyPlus",
        "Prodigy, schedule-free",
        ADAPTIVE,
        "prodigyplus",
        "prodigy-plus-schedule-free",
        6.0,
        schedule_free=True,
        adaptive=True,
        aliases=(
            "ProdigyPlusScheduleFree",
            "prodigyplus.ProdigyPlusScheduleFree",
            "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree",
        ),
    ),
    _d_adaptation("DAdaptation", "D-Adaptation", 12.0, "DAdaptAdamPreprint", "dadaptation.experimental.DAdaptAdamPreprint"),
    _d_adaptation("DAdaptAdam", "D-Adaptation, Adam", 12.0, "dadaptation.DAdaptAdam"),
    _d_adaptation("DAdaptAdaGrad", "D-Adaptation, AdaGrad", 12.0, "dadaptation.DAdaptAdaGrad"),
    _d_adaptation("DAdaptAdan", "D-Adaptation, Adan", 20.0, "dadaptation.DAdaptAdan"),
    _d_adaptation("DAdaptAdanIP", "D-Adaptation, Adan IP", 20.0, "dadaptation.experimental.DAdaptAdanIP"),
    _d_adaptation("DAdaptLion", "D-Adaptation, Lion", 8.0, "dadaptation.DAdaptLion"),
    _d_adaptation("DAdaptSGD", "D-Adaptation, SGD", 12.0, "dadaptation.DAdaptSGD"),
    _schedule_free("AdamWScheduleFree", "AdamW, schedule-free", SCHEDULE_FREE, 8.0),
    _schedule_free("RAdamScheduleFree", "RAdam, schedule-free", SCHEDULE_FREE, 8.0),
    _schedule_free("SGDScheduleFree", "SGD, schedule-free", SGD, 4.0),
    OptimizerSpec("CAME", "CAME", ADAM, "came_pytorch", "came-pytorch", 5.0, aliases=("came_pytorch.CAME",)),
    OptimizerSpec(
        "LAMB", "LAMB", SCALED, "pytorch_optimizer", "pytorch-optimizer", 8.0, aliases=("pytorch_optimizer.Lamb", "pytorch_optimizer.LAMB")
    ),
)
TORCH_NAMES = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop")
"""torch.optim classes that sd-scripts accepts without their package."""

OPTIMIZER_CHOICES: Mapping[str, str] = {spec.name: spec.label for spec in OPTIMIZER_SPECS}
OPTIMIZER_ALIASES: Mapping[str, str] = {alias.lower(): spec.name for spec in OPTIMIZER_SPECS for alias in spec.aliases} | {
    name.lower(): f"torch.optim.{name}" for name in TORCH_NAMES
}
_BY_NAME = {spec.name: spec for spec in OPTIMIZER_SPECS}

SCHEDULE_CHOICES: Mapping[str, str] = {
    "constant": "Constant",
    "cosine": "Cosine",
    "linear": "Linear",
    "cosine_with_restarts": "Cosine with restarts",
    "cosine_annealing": "Cosine, down and up",
    "polynomial": "Polynomial",
    "inverse_sqrt": "Inverse square root",
    "warmup_stable_decay": "Stable, then decay",
    "rex": "REX",
    "piecewise_constant": "Piecewise constant",
    "adafactor": "AdaFactor's own",
}
SCHEDULE_ALIASES: Mapping[str, str] = {
    "constant_with_warmup": "constant",
    "linear_with_warmup": "linear",
    "cosine_with_min_lr": "cosine",
    "cosine_annealing_with_restarts": "cosine_with_restarts",
}


def optimizer_spec(name: str) -> OptimizerSpec:
    """The spec of an optimizer; for a class of any package one that assumes nothing: not elementwise, any rate."""
    return _BY_NAME.get(name) or OptimizerSpec(name, name, RateRange(0.0, 10.0, 1e-4), name.partition(".")[0], name.partition(".")[0])
