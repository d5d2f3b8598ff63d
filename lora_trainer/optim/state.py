"""The state of any torch optimizer as tensors by name and plain values, and back: exact, whatever the optimizer keeps where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.errors import TrainerError

NOT_KEPT = ("params", "lr", "fused", "foreach", "capturable", "differentiable")
"""Of a group's values: what it is over, what is set at each step, and what depends on machine and torch."""
NOT_OWN = ("defaults", "state", "param_groups")
_LEFT_OUT = object()


def other_state() -> TrainerError:
    """What is told of a state that does not fit."""
    return TrainerError(
        "the state was kept by another optimizer or other learning rates.",
        path="optimizer.type",
        fix="Resume with the optimizer and the rates that the run began with.",
    )


def pack_state(
    inner: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, plain): per parameter, per group, and what the optimizer holds beside them. The tensors are not copied."""
    tensors: dict[str, Tensor] = {}
    groups = [
        _packed_table({key: value for key, value in group.items() if key not in NOT_KEPT}, f"group.{number}", tensors)
        for number, group in enumerate(inner.param_groups)
    ]
    state = {name: _packed_table(inner.state[parameter], name, tensors) for name, parameter in names.items() if inner.state.get(parameter)}
    own = _packed_table(
        {key: value for key, value in vars(inner).items() if key not in NOT_OWN and not key.startswith("_")}, "own", tensors
    )
    plain = {"groups": groups, "state": state, "own": own, "options": _packed_table(options, "options", tensors)}
    return _apart(tensors), plain


def unpack_state(
    inner: torch.optim.Optimizer,
    names: Mapping[str, nn.Parameter],
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> None:
    """Puts back what `pack_state` gave. An option that was given another value since keeps the new one."""
    if len(plain["groups"]) != len(inner.param_groups) or not set(plain["state"]) <= set(names):
        raise other_state()
    before = _unpacked_table(plain["options"], tensors, None)
    changed = {key for key, value in options.items() if before.get(key, _LEFT_OUT) != value}
    for group, kept in zip(inner.param_groups, plain["groups"], strict=True):
        place = group["params"][0].device
        group.update({key: value for key, value in _unpacked_table(kept, tensors, place).items() if key not in changed})
    for key, value in _unpacked_table(plain["own"], tensors, None).items():
        setattr(inner, key, value)
    for name, kept in plain["state"].items():
        parameter = names[name]
        inner.state[parameter] = _unpacked_table(kept, tensors, parameter.device)
    _settle_steps(inner)


def moved(inner: torch.optim.Optimizer, device: torch.device) -> None:
    """Every tensor that the optimizer keeps as a fresh copy on `device`."""
    for state in inner.state.values():
        for key, value in state.items():
            state[key] = _copied(value, device)
    for group in inner.param_groups:
        for key, value in group.items():
            if key != "params":
                group[key] = _copied(value, device)
    for key, value in vars(inner).items():
        if key not in NOT_OWN and not key.startswith("_"):
            setattr(inner, key, _copied(value, device))
    _settle_steps(inner)


def _settle_steps(inner: torch.optim.Optimizer) -> None:
    """torch's own optimizers count steps in a tensor: on the parameter's device where they run fused or captured, else on the CPU."""
    for group in inner.param_groups:
        beside = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            step = inner.state[parameter].get("step") if parameter in inner.state else None
            if isinstance(step, Tensor):
                inner.state[parameter]["step"] = step.to(parameter.device if beside else "cpu")


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if type(value) in (list, tuple):
        return type(value)(_copied(part, device) for part in value)
    if type(value) is dict:
        return {key: _copied(part, device) for key, part in value.items()}
    return value


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares its storage with another, as a safetensors file wants them."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def _packed_table(table: Mapping[str, Any], name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    packed = {key: _packed(value, f"{name}.{key}", tensors) for key, value in table.items()}
    return {key: value for key, value in packed.items() if value is not _LEFT_OUT}


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON holds it; a tensor by its name in `tensors`; functions and other machinery are left out."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        parts = [_packed(part, f"{name}.{number}", tensors) for number, part in enumerate(value)]
        return _LEFT_OUT if _LEFT_OUT in parts else {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": _packed_table(value, name, tensors)}
    return _LEFT_OUT


def _unpacked_table(table: Mapping[str, Any], tensors: Mapping[str, Tensor], place: torch.device | None) -> dict[str, Any]:
    return {key: _unpacked(value, tensors, place) for key, value in table.items()}


def _unpacked(value: Any, tensors: Mapping[str, Tensor], place: torch.device | None) -> Any:
    if not isinstance(value, Mapping):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held].to(place, copy=True) if place is not None else tensors[held].clone()
    if kind == "float":
        return float(held)
    if kind == "dict":
        return _unpacked_table(held, tensors, place)
    parts = [_unpacked(part, tensors, place) for part in held]
    return tuple(parts) if kind == "tuple" else parts
