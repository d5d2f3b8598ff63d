"""Network files of any kind, module by module, without a model: the kind of each module, and its weight delta."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.kinds import kind_of
from lora_trainer.adapters.kinds.base import Kind
from lora_trainer.errors import ModelError


@attrs.frozen(eq=False)
class ModuleState:
    """One module of a file: its kind, its tensors by suffix (without alpha), and its alpha; the rank where the file has none."""

    kind: Kind
    tensors: Mapping[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """The rank that alpha is divided by; 1 where the kind has none."""
        return self.kind.rank(self.tensors)

    @property
    def scale(self) -> float:
        """The factor of the bare product of the tensors."""
        return self.kind.scale(self.tensors, self.alpha)

    @property
    def reads_weight(self) -> bool:
        """Whether its delta depends on the layer's weight, as with DoRA and OFT."""
        return self.kind.reads_weight(self.tensors)


def modules_of(state: Mapping[str, Tensor], source: str) -> dict[str, ModuleState]:
    """Module name -> state, from tensors by sd-scripts' names; `source`: the file's name for errors.

    Raises ModelError for a module of an unknown kind, and for an incomplete one.
    """
    by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, suffix = key.partition(".")
        by_module.setdefault(name, {})[suffix] = tensor
    return {name: _module(name, tensors, source) for name, tensors in by_module.items()}


def _module(name: str, tensors: dict[str, Tensor], source: str) -> ModuleState:
    kind = kind_of(tensors)
    if kind is None:
        raise ModelError(
            "{path} is not a network that can be read: {name} holds {suffixes}.",
            path=source,
            name=name,
            suffixes=", ".join(sorted(tensors)),
            fix="Choose a LoRA or LyCORIS file in sd-scripts' names.",
        )
    alpha = tensors.pop("alpha", None)
    return ModuleState(kind, tensors, float(kind.rank(tensors)) if alpha is None else float(alpha))


def delta_of(state: ModuleState, weight: Tensor) -> Tensor:
    """The change of `weight` by a module at strength 1: float32, in its shape.

    `weight` may be on the meta device unless `state.reads_weight`. Raises ModelError where the shapes do not fit.
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
    """The change of the bias by a module at strength 1, float32; None where there is none."""
    delta = state.kind.bias_delta(state.tensors)
    return None if delta is None else delta.float()


def empty_weight(shape: tuple[int, ...]) -> Tensor:
    """A weight on the meta device, for `delta_of` where only the shape is known."""
    return torch.empty(shape, device="meta")
