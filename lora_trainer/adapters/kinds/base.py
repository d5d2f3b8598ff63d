"""The interface of a network kind, the layer that it adapts, and the initialisations that kinds share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.config.choices.networks import DORA, NETWORK_KINDS, NetworkKind, Shape, alpha_in_file

Forward = Callable[[Tensor], Tensor]
Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, Shape]


class HasShape(Protocol):
    """A tensor, or its entry in a file's header."""

    @property
    def shape(self) -> Shape: ...


@attrs.define(eq=False)
class AdapterLayer:
    """One trained layer: its float32 parameters by their suffix in a file.

    `compute_tensors`: what a forward pass uses in place of the parameters, in their order: equal values, maybe in another dtype.
    `scale`: alpha / rank. `strength`: scale times the network's multiplier. `rng`: random draws of the current batch, None outside of
    training.
    """

    plan: LayerPlan
    kind: Kind
    options: Mapping[str, Any]
    parameters: dict[str, nn.Parameter]
    alpha: float
    shape: tuple[int, ...]
    compute_tensors: tuple[Tensor, ...] = ()
    multiplier: float = 1.0
    strength: float = 1.0
    scale: float = 1.0
    rng: LayerRng | None = None

    def __attrs_post_init__(self) -> None:
        self.compute_tensors = tuple(self.parameters.values())
        self.refresh()

    def refresh(self) -> None:
        """Recomputes scale and strength after a change of alpha or multiplier."""
        self.scale = self.kind.scale(self.parameters, self.alpha)
        self.strength = self.scale * self.multiplier

    def compute_dict(self) -> dict[str, Tensor]:
        """`compute_tensors` by suffix."""
        return dict(zip(self.parameters, self.compute_tensors, strict=True))

    def in_float32(self, suffix: str) -> Tensor:
        """A tensor in float32 whatever dtype the batch computes in: for magnitudes and rotations, where rounding changes the whole layer.

        Its gradient still reaches the compute tensor.
        """
        master, used = self.parameters[suffix], self.compute_dict()[suffix]
        return used if used.dtype == master.dtype else master.detach() + (used - used.detach()).to(master.dtype)


class Kind(ABC):
    """The arithmetic of one kind. Tensors come by their suffix in a file, in the order of `spec.shapes`."""

    name: str
    """Its name in NETWORK_KINDS."""

    @property
    def spec(self) -> NetworkKind:
        """What is known of it without torch."""
        return NETWORK_KINDS[self.name]

    @abstractmethod
    def rank(self, tensors: Mapping[str, HasShape]) -> int:
        """The rank that alpha is divided by; 1 where there is none."""

    def has_rank(self, suffixes: Collection[str]) -> bool:
        """Whether rank and alpha of a module with these suffixes mean anything."""
        return self.spec.has_rank

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """The factor of the bare product of the tensors: alpha / rank."""
        return alpha / self.rank(tensors)

    def alpha_in_file(self, layer: LayerPlan, tensors: Tensors) -> float:
        """The alpha that a file stores for a planned layer."""
        return alpha_in_file(layer.alpha, layer.rank, layer.options)

    def reads_weight(self, suffixes: Collection[str]) -> bool:
        """Whether the delta of a module with these suffixes depends on the values of the frozen weight."""
        return self.spec.reads_weight or DORA in suffixes

    @abstractmethod
    def weight_size(self, shapes: Shapes) -> tuple[int, int]:
        """(rows, number of elements) of the weight that tensors of these shapes belong to; 0 elements: any number.

        (0, 0) where the shapes contradict each other.
        """

    @abstractmethod
    def init_tensors(self, tensors: Mapping[str, nn.Parameter], base: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """Fills fresh tensors, which are zero, so that the layer does not change anything yet. Called under no_grad."""

    @abstractmethod
    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """The change of the weight, in its shape. `weight` may be on the meta device where the kind does not read its values."""

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """The tensors whose product the delta is; empty where it is not a product, so that its norm says nothing about its strength."""
        return []

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Frobenius norm of the bare product, without alpha / rank."""
        raise NotImplementedError

    def is_random(self, options: Mapping[str, Any]) -> bool:
        """Whether a layer draws random numbers in training."""
        return any(options.get(name) for name in ("dropout", "rank_dropout", "module_dropout"))

    def bias_delta(self, tensors: Tensors) -> Tensor | None:
        """The change of the bias; None where there is none."""
        return None

    @abstractmethod
    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """The layer's forward with its adapter, in the cheapest correct form; reads compute tensors and strength at each call."""


def factor_size(a: Shape, b: Shape, core: Shape | None = None) -> tuple[int, int]:
    """(rows, elements) of a @ b, [out, rank] @ [rank, columns], or of a Tucker core [rank, rank, kh, kw] with a [rank, out], b [rank, in].

    (0, 0) where the shapes contradict each other.
    """
    if len(a) != 2 or len(b) != 2:
        return 0, 0
    if core is None:
        return (a[0], a[0] * b[1]) if a[1] == b[0] else (0, 0)
    return (a[1], a[1] * b[1] * math.prod(core[2:])) if len(core) == 4 and core[:2] == (a[0], b[0]) else (0, 0)


def kaiming_(tensor: Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(fan_in): Kaiming with a = sqrt(5), as other trainers initialise. Drawn on the CPU, so that devices agree."""
    bound = 1.0 / math.sqrt(tensor[0].numel())
    tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


def normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Normal with mean 0, drawn on the CPU."""
    tensor.copy_(torch.empty(tensor.shape).normal_(std=std, generator=generator))


def orthogonal_(tensor: Tensor, generator: torch.Generator) -> None:
    """Rows orthogonal to each other, with the mean length of Kaiming's; columns instead where there are more rows than columns."""
    drawn = torch.empty(tensor.flatten(1).shape).normal_(generator=generator)
    wide = drawn.shape[0] <= drawn.shape[1]
    rows = torch.linalg.qr(drawn.t() if wide else drawn).Q
    tensor.copy_((rows.t() if wide else rows).reshape(tensor.shape) / math.sqrt(3.0))
