"""Files of any kind of network, module by module, without a model: what each module is, and what it adds to a weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.kinds import kind_of
from lora_trainer.adapters.kinds.base import Kind
from lora_trainer.errors import ModelError
from lora_trainer.models.detection.detect import read_header


@attrs.frozen(eq=False)
class ModuleState:
    """One module of a file: its kind, its tensors by suffix without alpha, and the alpha that its scale is made of."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """What alpha is divided by; 1 where the kind has no rank."""
        return self.kind.rank(self.tensors)

    @property
    def scale(self) -> float:
        """What the bare product of the tensors is multiplied by."""
        return self.kind.scale(self.tensors, self.alpha)


def read_network(path: Path) -> dict[str, ModuleState]:
    """Module name -> state, for a file in sd-scripts' names. Raises ModelError for another file, and for half a module."""
    from safetensors import safe_open

    read_header(path)  # raises for what is no safetensors file
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return modules_of(tensors, str(path))


def modules_of(state: Mapping[str, Tensor], source: str) -> dict[str, ModuleState]:
    """The same from tensors by their names in a file; `source` is what an error calls them."""
    by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, suffix = key.partition(".")
        by_module.setdefault(name, {})[suffix] = tensor
    return {name: _module(name, tensors, source) for name, tensors in by_module.items()}


def _module(name: str, tensors: dict[str, Tensor], source: str) -> ModuleState:
    kind = kind_of(tensors)
    if kind is None:
        raise ModelError(
            "{path} is no network that can be read: {name} holds {suffixes}.",
            path=source,
            name=name,
            suffixes=", ".join(sorted(tensors)),
            fix="Choose a LoRA or LyCORIS file in sd-scripts' names.",
        )
    alpha = tensors.pop("alpha", None)
    return ModuleState(kind, tensors, float(kind.rank(tensors)) if alpha is None else float(alpha))


def delta_of(state: ModuleState, weight: Tensor) -> Tensor:
    """What a module adds to `weight` at strength 1: float32, in its shape.

    Only DoRA and OFT read the weight's values; for the others it may lie on meta. Raises ModelError where the shapes do not fit.
    """
    tensors = {suffix: tensor.float() for suffix, tensor in state.tensors.items()}
    try:
        return state.kind.weight_delta(tensors, state.alpha, weight if weight.is_meta else weight.float())
    except RuntimeError as error:
        raise ModelError(
            "a module of kind {kind} does not fit a weight of shape {shape}.",
            kind=state.kind.name,
            shape="x".join(map(str, weight.shape)),
            fix="Use a file of the same family.",
        ) from error


def bias_delta_of(state: ModuleState) -> Tensor | None:
    """What a module adds to the bias at strength 1, where it does."""
    found = state.kind.bias_delta(state.tensors)
    return None if found is None else found.float()


def empty_weight(shape: tuple[int, ...]) -> Tensor:
    """A weight without values, for `delta_of` where only the shape is known."""
    return torch.empty(shape, device="meta")
