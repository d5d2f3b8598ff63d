"""The state of any torch optimizer as named tensors and JSON values, and back: exact, wherever the optimizer keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.errors import TrainerError

NOT_SAVED = ("params", "lr", "fused", "foreach", "capturable", "differentiable")
"""Keys of a parameter group that are not saved: its parameters, what each step sets, and what depends on the machine."""
PAGED_STATES = ("state1", "state2")
"""What bitsandbytes keeps in pageable memory, in the parameter's shape."""
NOT_OWN = ("defaults", "state", "param_groups")
_LEFT_OUT = object()


def state_mismatch() -> TrainerError:
    """The error for a state that does not fit."""
    return TrainerError(
        "the state was saved with another optimizer or other learning rates.",
        path="optimizer.type",
        fix="Resume with the optimizer and the rates that the run began with.",
    )


def pack_state(
    inner: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON values): the state of each parameter and group, and the optimizer's own attributes. Tensors are not copied."""
    tensors: dict[str, Tensor] = {}
    groups = [
        _pack_table({key: value for key, value in group.items() if key not in NOT_SAVED}, f"group.{number}", tensors)
        for number, group in enumerate(inner.param_groups)
    ]
    state = {name: _pack_table(inner.state[parameter], name, tensors) for name, parameter in names.items() if inner.state.get(parameter)}
    own = _pack_table({key: value for key, value in vars(inner).items() if key not in NOT_OWN and not key.startswith("_")}, "own", tensors)
    plain = {"groups": groups, "state": state, "own": own, "options": _pack_table(options, "options", tensors)}
    return _unshared(tensors), plain


def unpack_state(
    inner: torch.optim.Optimizer,
    names: Mapping[str, nn.Parameter],
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> None:
    """Restores what `pack_state` gave; an option that has changed since keeps its new value. Raises TrainerError where it does not fit."""
    if len(plain["groups"]) != len(inner.param_groups) or not set(plain["state"]) <= set(names):
        raise state_mismatch()
    before = _unpack_table(plain["options"], tensors, None)
    changed = {key for key, value in options.items() if before.get(key, _LEFT_OUT) != value}
    for group, saved in zip(inner.param_groups, plain["groups"], strict=True):
        device = group["params"][0].device
        group.update({key: value for key, value in _unpack_table(saved, tensors, device).items() if key not in changed})
    for key, value in _unpack_table(plain["own"], tensors, None).items():
        setattr(inner, key, value)
    _leave_pages(inner)
    for name, saved in plain["state"].items():
        parameter = names[name]
        inner.state[parameter] = _unpack_table(saved, tensors, parameter.device)
    _page_again(inner)
    _place_step_counts(inner)


def move_state(inner: torch.optim.Optimizer, device: torch.device) -> None:
    """Replaces every tensor that the optimizer keeps by a fresh copy on `device`; what was in pageable memory is there again."""
    _leave_pages(inner)
    for state in inner.state.values():
        for key, value in state.items():
            state[key] = _copy_to(value, device)
    for group in inner.param_groups:
        for key, value in group.items():
            if key != "params":
                group[key] = _copy_to(value, device)
    for key, value in vars(inner).items():
        if key not in NOT_OWN and not key.startswith("_"):
            setattr(inner, key, _copy_to(value, device))
    _page_again(inner)
    _place_step_counts(inner)


def _leave_pages(inner: torch.optim.Optimizer) -> None:
    """Takes a paged optimizer's state off bitsandbytes' list, which would keep it for ever; the list is shared by the whole process."""
    if not getattr(inner, "is_paged", False):
        return
    own = {id(value) for state in inner.state.values() for value in state.values() if getattr(value, "is_paged", False)}
    manager: Any = inner.page_mng  # type: ignore[attr-defined]
    manager.paged_tensors[:] = [tensor for tensor in manager.paged_tensors if id(tensor) not in own]


def _page_again(inner: torch.optim.Optimizer) -> None:
    """Gives the state of a paged optimizer on a GPU pageable memory again: a copy is ordinary memory of the GPU."""
    if not getattr(inner, "is_paged", False):
        return
    for parameter, state in inner.state.items():
        for key in PAGED_STATES:
            value = state.get(key)
            if isinstance(value, Tensor) and _is_on_gpu(parameter):
                state[key] = inner.get_state_buffer(parameter, dtype=value.dtype)  # type: ignore[attr-defined]
                state[key].copy_(value)


def _is_on_gpu(parameter: Tensor) -> bool:
    return parameter.device.type != "cpu"


def _place_step_counts(inner: torch.optim.Optimizer) -> None:
    """Puts the step counts of torch's optimizers on the parameter's device where fused or capturable, else on the CPU, as torch does."""
    for group in inner.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            step = inner.state[parameter].get("step") if parameter in inner.state else None
            if isinstance(step, Tensor):
                inner.state[parameter]["step"] = step.to(parameter.device if on_device else "cpu")


def _copy_to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if type(value) in (list, tuple):
        return type(value)(_copy_to(part, device) for part in value)
    if type(value) is dict:
        return {key: _copy_to(part, device) for key, part in value.items()}
    return value


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares its storage with another, as safetensors requires."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        unshared[name] = tensor
    return unshared


def _pack_table(table: Mapping[str, Any], name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    packed = {key: _pack(value, f"{name}.{key}", tensors) for key, value in table.items()}
    return {key: value for key, value in packed.items() if value is not _LEFT_OUT}


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; a tensor by its name in `tensors`, to which it is added. Functions and other objects are left out."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        parts = [_pack(part, f"{name}.{index}", tensors) for index, part in enumerate(value)]
        return _LEFT_OUT if _LEFT_OUT in parts else {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": _pack_table(value, name, tensors)}
    return _LEFT_OUT


def _unpack_table(table: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device | None) -> dict[str, Any]:
    return {key: _unpack(value, tensors, device) for key, value in table.items()}


def _unpack(value: Any, tensors: Mapping[str, Tensor], device: torch.device | None) -> Any:
    if not isinstance(value, Mapping):
        return value
    ((kind, packed),) = value.items()
    if kind == "tensor":
        return tensors[packed].to(device, copy=True) if device is not None else tensors[packed].clone()
    if kind == "float":
        return float(packed)
    if kind == "dict":
        return _unpack_table(packed, tensors, device)
    parts = [_unpack(part, tensors, device) for part in packed]
    return tuple(parts) if kind == "tuple" else parts
