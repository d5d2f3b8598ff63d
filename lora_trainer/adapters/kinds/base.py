"""What every kind of addition can do, and the layer that it is put on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.config.choices.networks import NETWORK_KINDS, NetworkKind, alpha_in_file

Forward = Callable[[Tensor], Tensor]
Tensors = Mapping[str, Tensor]


@attrs.define(eq=False)
class Layer:
    """One trained layer: float32 parameters by their suffix in a file, and what a batch calculates with instead of them.

    `strength` is scale times the network's multiplier; `chance` what is drawn at random in the current batch, None outside of training.
    """

    plan: LayerPlan
    kind: Kind
    options: Mapping[str, Any]
    parameters: dict[str, nn.Parameter]
    alpha: float
    shape: tuple[int, ...]
    used: tuple[Tensor, ...] = ()
    multiplier: float = 1.0
    strength: float = 1.0
    scale: float = 1.0
    rng: LayerRng | None = None

    def __attrs_post_init__(self) -> None:
        self.used = tuple(self.parameters.values())
        self.refresh()

    def refresh(self) -> None:
        """After another alpha or multiplier."""
        self.scale = self.kind.scale(self.parameters, self.alpha)
        self.strength = self.scale * self.multiplier

    def named(self) -> dict[str, Tensor]:
        """What the batch calculates with, by suffix."""
        return dict(zip(self.parameters, self.used, strict=True))

    def exact(self, suffix: str) -> Tensor:
        """A tensor near one or near a length, in float32 whatever the batch calculates with: rounding it would change the whole layer.

        Its gradient still goes to what the batch was given.
        """
        master, used = self.parameters[suffix], self.named()[suffix]
        return used if used.dtype == master.dtype else master.detach() + (used - used.detach()).to(master.dtype)


class Kind(ABC):
    """The arithmetic of one kind. Tensors come by their suffix in a file, in the order of `facts.shapes`."""

    name: str
    needed: tuple[frozenset[str], ...]
    """Sets of suffixes of which a file holds at least one whole, where a module is of this kind."""
    known: frozenset[str]
    """All suffixes that such a module may have, without alpha."""

    @property
    def facts(self) -> NetworkKind:
        """What is known of it without torch."""
        return NETWORK_KINDS[self.name]

    def owns(self, suffixes: frozenset[str]) -> bool:
        """Whether a module with these suffixes is of this kind."""
        return suffixes <= self.known and any(needed <= suffixes for needed in self.needed)

    @abstractmethod
    def rank(self, tensors: Tensors) -> int:
        """The rank that alpha is divided by; 1 where there is none."""

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """What the bare product of the tensors is multiplied by."""
        return alpha / self.rank(tensors)

    def alpha_in_file(self, layer: LayerPlan, tensors: Tensors) -> float:
        """The alpha that a file holds of a planned layer."""
        return alpha_in_file(layer.alpha, layer.rank, layer.options)

    @abstractmethod
    def init_tensors(self, tensors: Mapping[str, nn.Parameter], site: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """Fills fresh tensors, zeros until now, so that the layer changes nothing yet. Under no_grad."""

    @abstractmethod
    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """What the weight gains, in its shape; `weight` may lie on meta for kinds that read its shape alone."""

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """The tensors whose product the addition is; none where it is no product, so that its norm says nothing of its strength."""
        return []

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """The norm of the bare product."""
        raise NotImplementedError

    def is_random(self, options: Mapping[str, Any]) -> bool:
        """Whether a layer draws anything at random while it learns."""
        return any(options.get(name) for name in ("dropout", "rank_dropout", "module_dropout"))

    def bias_delta(self, tensors: Tensors) -> Tensor | None:
        """What the bias gains, where there is such a thing."""
        return None

    @abstractmethod
    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """The layer with its addition, in the cheapest correct form; reads `layer.used` and `layer.strength` at each call."""


def kaiming(tensor: Tensor, generator: torch.Generator) -> None:
    """Uniform within 1 / sqrt(fan in): Kaiming's with a = sqrt(5), as other trainers begin. Drawn on the CPU, so that devices agree."""
    bound = 1.0 / math.sqrt(tensor[0].numel())
    tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


def normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Normal around zero, drawn on the CPU."""
    tensor.copy_(torch.empty(tensor.shape).normal_(std=std, generator=generator))


def orthogonal(tensor: Tensor, generator: torch.Generator) -> None:
    """Rows that are orthogonal to each other, as long as Kaiming's are on average; columns where there are more rows than columns."""
    drawn = torch.empty(tensor.flatten(1).shape).normal_(generator=generator)
    wide = drawn.shape[0] <= drawn.shape[1]
    rows = torch.linalg.qr(drawn.t() if wide else drawn).Q
    tensor.copy_((rows.t() if wide else rows).reshape(tensor.shape) / math.sqrt(3.0))
