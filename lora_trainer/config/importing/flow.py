"""Settings of rectified flow under the names of sd-scripts (for other families) and of its variants that train SDXL with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_trainer.config.importing.learning import Options, Translate
from lora_trainer.config.importing.reasons import ITSELF, NOT_YET, reason_left
from lora_trainer.config.importing.values import to_number
from lora_trainer.messages import Message, say

TRUE = (True, "true", "True", "rectified_flow", "cfm")
DISTRIBUTIONS = {"uniform": "uniform", "logit_normal": "logit_normal", "mode": "mode", "sigmoid": "logit_normal", "shift": "logit_normal"}
"""sd-scripts' "sigmoid" is the sigmoid of a normal number; "shift" shifts it."""


def is_flow(settings: Mapping[str, Any]) -> bool:
    """Whether a file's settings are for a model of rectified flow among the families that are trained here."""
    return settings.get("flow_model") in TRUE


def _flow_model(value: Any, settings: Mapping[str, Any], read: object) -> Options | Message:
    return [("model.prediction", "flow")] if value in TRUE else ITSELF


def _distribution(name: str) -> Translate:
    def take(value: Any, settings: Mapping[str, Any], read: object) -> Options | Message:
        if not is_flow(settings):
            return reason_left(name, value)
        found = DISTRIBUTIONS.get(str(value))
        return say("{value} has no counterpart here.", value=value) if found is None else [("loss.timestep_sampling", found)]

    return take


def _number(name: str, path: str) -> Translate:
    def take(value: Any, settings: Mapping[str, Any], read: object) -> Options | Message:
        return [(path, to_number(value))] if is_flow(settings) else reason_left(name, value)

    return take


def _not_yet(value: Any, settings: Mapping[str, Any], read: object) -> Options | Message:
    return NOT_YET


FLOW_KEYS: Mapping[str, Callable[[Any, Mapping[str, Any], Any], Options | Message]] = {
    "flow_model": _flow_model,
    **{name: _distribution(name) for name in ("timestep_sampling", "flow_timestep_distribution")},
    **{name: _number(name, f"loss.{name}") for name in ("logit_mean", "logit_std", "mode_scale", "discrete_flow_shift")},
    **{f"flow_{name}": _number(f"flow_{name}", f"loss.{name}") for name in ("logit_mean", "logit_std")},
    **{name: _number(name, "loss.discrete_flow_shift") for name in ("flow_uniform_static_ratio", "training_shift")},
    **{name: _number(name, "loss.logit_std") for name in ("sigmoid_scale",)},
    **dict.fromkeys(("flow_use_ot", "flow_uniform_shift", "contrastive_flow_matching", "cfm_lambda"), _not_yet),
}
"""Key -> our options for it. Without `flow_model` sd-scripts reads those without "flow_" for other families only."""
