"""Optimizers and schedules by name: what people, the form, the plan and the rate's check need to know of them (no torch)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""A class of any package that is installed: torch.optim.RMSprop."""


@attrs.frozen
class Family:
    """Optimizers that want the same learning rates for a LoRA: `low` to `high` is sensible, `hint` is where to begin."""

    low: float
    high: float
    hint: float


ADAM = Family(1e-7, 1e-2, 1e-4)
LION = Family(1e-8, 1e-3, 3e-5)
SGD = Family(1e-3, 10.0, 0.1)
FREE = Family(1e-7, 2e-2, 5e-4)
SCALED = Family(1e-6, 5e-2, 1e-3)
FINDS_ITSELF = Family(0.1, 5.0, 1.0)


@attrs.frozen
class OptimizerName:
    """`package` is what must be importable, `pip` its name there; `bytes` of state per parameter beside the gradient.

    `elementwise`: every number steps by itself, so that all parameters may lie in one buffer. `one_rate`: refuses different rates.
    `free`: averages the weights by itself and wants a constant schedule; `finds`: finds the size of its steps, rates are multiples of it.
    """

    name: str
    label: str
    family: Family
    package: str = ""
    pip: str = ""
    bytes: float = 8.0
    elementwise: bool = False
    one_rate: bool = False
    free: bool = False
    finds: bool = False
    also: tuple[str, ...] = ()
    stand_in: str = ""
    """The one that steps alike with more memory, where this one does not work."""


def _bits(name: str, label: str, family: Family, state: float, stand_in: str, *also: str) -> OptimizerName:
    return OptimizerName(name, label, family, "bitsandbytes", "bitsandbytes", state, also=also, stand_in=stand_in)


def _adapting(name: str, label: str, state: float, *also: str, whole: bool = True) -> OptimizerName:
    return OptimizerName(name, label, FINDS_ITSELF, "dadaptation", "dadaptation", state, whole, one_rate=True, finds=True, also=also)


def _schedule_free(name: str, label: str, family: Family, state: float) -> OptimizerName:
    return OptimizerName(name, label, family, "schedulefree", "schedulefree", state, True, free=True, also=(f"schedulefree.{name}",))


OPTIMIZER_NAMES = (
    OptimizerName("AdamW", "AdamW", ADAM, elementwise=True, also=("torch.optim.AdamW",)),
    _bits("AdamW8bit", "AdamW, 8 bit", ADAM, 2.0, "AdamW", "bitsandbytes.optim.AdamW8bit"),
    _bits("PagedAdamW8bit", "AdamW, 8 bit, paged", ADAM, 2.0, "AdamW", "bitsandbytes.optim.PagedAdamW8bit"),
    _bits("PagedAdamW", "AdamW, paged", ADAM, 8.0, "AdamW", "PagedAdamW32bit", "bitsandbytes.optim.PagedAdamW"),
    OptimizerName("Lion", "Lion", LION, "lion_pytorch", "lion-pytorch", 4.0, True, also=("lion_pytorch.Lion",)),
    _bits("Lion8bit", "Lion, 8 bit", LION, 1.0, "Lion", "bitsandbytes.optim.Lion8bit"),
    _bits("PagedLion8bit", "Lion, 8 bit, paged", LION, 1.0, "Lion", "bitsandbytes.optim.PagedLion8bit"),
    OptimizerName("SGD", "SGD", SGD, bytes=4.0, elementwise=True, also=("torch.optim.SGD",)),
    OptimizerName("SGDNesterov", "SGD, Nesterov", SGD, bytes=4.0, elementwise=True),
    _bits("SGDNesterov8bit", "SGD, Nesterov, 8 bit", SGD, 1.0, "SGDNesterov"),
    OptimizerName(
        "AdaFactor",
        "AdaFactor",
        ADAM,
        "transformers",
        "transformers",
        0.2,
        also=("transformers.optimization.Adafactor", "transformers.Adafactor"),
    ),
    OptimizerName(
        "Prodigy", "Prodigy", FINDS_ITSELF, "prodigyopt", "prodigyopt", 16.0, True, one_rate=True, finds=True, also=("prodigyopt.Prodigy",)
    ),
    OptimizerName(
        "ProdigyPlus",
        "Prodigy, schedule-free",
        FINDS_ITSELF,
        "prodigyplus",
        "prodigy-plus-schedule-free",
        6.0,
        free=True,
        finds=True,
        also=(
            "ProdigyPlusScheduleFree",
            "prodigyplus.ProdigyPlusScheduleFree",
            "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree",
        ),
    ),
    _adapting("DAdaptation", "D-Adaptation", 12.0, "DAdaptAdamPreprint", "dadaptation.experimental.DAdaptAdamPreprint"),
    _adapting("DAdaptAdam", "D-Adaptation, Adam", 12.0, "dadaptation.DAdaptAdam"),
    _adapting("DAdaptAdaGrad", "D-Adaptation, AdaGrad", 12.0, "dadaptation.DAdaptAdaGrad"),
    _adapting("DAdaptAdan", "D-Adaptation, Adan", 20.0, "dadaptation.DAdaptAdan"),
    _adapting("DAdaptAdanIP", "D-Adaptation, Adan IP", 20.0, "dadaptation.experimental.DAdaptAdanIP"),
    _adapting("DAdaptLion", "D-Adaptation, Lion", 8.0, "dadaptation.DAdaptLion"),
    _adapting("DAdaptSGD", "D-Adaptation, SGD", 12.0, "dadaptation.DAdaptSGD"),
    _schedule_free("AdamWScheduleFree", "AdamW, schedule-free", FREE, 8.0),
    _schedule_free("RAdamScheduleFree", "RAdam, schedule-free", FREE, 8.0),
    _schedule_free("SGDScheduleFree", "SGD, schedule-free", SGD, 4.0),
    OptimizerName("CAME", "CAME", ADAM, "came_pytorch", "came-pytorch", 5.0, also=("came_pytorch.CAME",)),
    OptimizerName(
        "LAMB", "LAMB", SCALED, "pytorch_optimizer", "pytorch-optimizer", 8.0, also=("pytorch_optimizer.Lamb", "pytorch_optimizer.LAMB")
    ),
)
TORCH_NAMES = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop")
"""Classes that sd-scripts takes without the package before them."""

OPTIMIZER_CHOICES: Mapping[str, str] = {known.name: known.label for known in OPTIMIZER_NAMES}
OPTIMIZER_ALSO: Mapping[str, str] = {other.lower(): known.name for known in OPTIMIZER_NAMES for other in known.also} | {
    name.lower(): f"torch.optim.{name}" for name in TORCH_NAMES
}
_BY_NAME = {known.name: known for known in OPTIMIZER_NAMES}

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
    "piecewise_constant": "Constant in pieces",
    "adafactor": "AdaFactor's own",
}
SCHEDULE_ALSO: Mapping[str, str] = {
    "constant_with_warmup": "constant",
    "linear_with_warmup": "linear",
    "cosine_with_min_lr": "cosine",
    "cosine_annealing_with_restarts": "cosine_with_restarts",
}


def optimizer_named(name: str) -> OptimizerName:
    """What is known of an optimizer; of a class of any package: that it may want matrices and any rate."""
    return _BY_NAME.get(name) or OptimizerName(name, name, Family(0.0, 10.0, 1e-4), name.partition(".")[0], name.partition(".")[0])
