"""LoKr: the Kronecker product of a small matrix and a larger one, each of which may be low-rank itself (Edalati et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.dora import MAGNITUDE, init_magnitude
from lora_trainer.adapters.kinds.base import Forward, Layer, Tensors, kaiming
from lora_trainer.adapters.kinds.loha import spread
from lora_trainer.adapters.kinds.weighted import WeightedKind
from lora_trainer.adapters.layer_plan import LayerPlan

W1, W1_A, W1_B, W2, W2_A, W2_B, T2 = "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"


class Lokr(WeightedKind):
    """w1 x w2. A layer's inputs are looked at as a table, so that w2 works along its rows and w1 along its columns."""

    name = "lokr"
    needed = tuple(frozenset({*first, *second}) for first in ((W1,), (W1_A, W1_B)) for second in ((W2,), (W2_A, W2_B)))
    known = frozenset({W1, W1_A, W1_B, W2, W2_A, W2_B, T2, MAGNITUDE})

    def rank(self, tensors: Tensors) -> int:
        """That of the part that is low-rank; 1 where both are whole."""
        found = tensors.get(W2_B, tensors.get(W1_B))
        return 1 if found is None else int(found.shape[0])

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """alpha / rank; 1 where both are whole."""
        return 1.0 if W1 in tensors and W2 in tensors else alpha / self.rank(tensors)

    def alpha_in_file(self, layer: LayerPlan, tensors: Tensors) -> float:
        """Alpha is the rank where both are whole, so that every reader finds a scale of 1."""
        return float(layer.rank) if W1 in tensors and W2 in tensors else super().alpha_in_file(layer, tensors)

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], site: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """w2, or the second factor of it, is zero."""
        for suffix in (T2, W2_A, W1, W1_A, W1_B):
            if suffix in tensors:
                kaiming(tensors[suffix], generator)
        init_magnitude(tensors, site)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """The Kronecker product in the weight's shape."""
        small, large = first(tensors), second(tensors, weight)
        ones = (1,) * (large.dim() - 2)
        return torch.kron(small.reshape(*small.shape, *ones), large.contiguous()).reshape(weight.shape)

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """The two products one after the other, which never makes the large matrix; its length needs it, and dropping rows of it."""
        if MAGNITUDE in layer.parameters or layer.options["rank_dropout"]:
            return super().forward(site, layer)
        through = _linear if site.linear else _convolution

        def added(x: Tensor) -> Tensor:
            base = site.base(x)
            return torch.add(base, through(site, layer.named(), x), alpha=layer.strength)

        return added


def _linear(site: BaseLayer, tensors: Tensors, x: Tensor) -> Tensor:
    """x as [..., in1, in2]: w2 on the right, w1 on the left."""
    small = first(tensors)
    table = x.reshape(-1, small.shape[1], x.shape[-1] // small.shape[1])
    if W2 in tensors:
        rows = functional.linear(table, tensors[W2])
    else:
        rows = functional.linear(functional.linear(table, tensors[W2_B]), tensors[W2_A])
    return torch.matmul(small, rows).reshape(*x.shape[:-1], -1)


def _convolution(site: BaseLayer, tensors: Tensors, x: Tensor) -> Tensor:
    """x [pictures, in1 * in2, h, w]: w2 over each of the in1 groups of channels, then w1 between the groups."""
    small, (pictures, _, *places) = first(tensors), x.shape
    groups = x.reshape(pictures * small.shape[1], -1, *places)
    if W2 in tensors:
        rows = site.call(groups, tensors[W2], None)
    elif T2 in tensors:
        inner = site.call(functional.conv2d(groups, matrix(tensors[W2_B])), tensors[T2], None)
        rows = functional.conv2d(inner, matrix(tensors[W2_A].t()))
    else:
        low, high = tensors[W2_B], tensors[W2_A]
        inner = site.call(groups, low.reshape(low.shape[0], -1, *site.weight.shape[2:]), None)
        rows = functional.conv2d(inner, matrix(high))
    mixed = torch.matmul(small, rows.reshape(pictures, small.shape[1], -1))
    return mixed.reshape(pictures, -1, *rows.shape[2:])


def matrix(values: Tensor) -> Tensor:
    """A matrix as the weight of a 1 x 1 convolution."""
    return values[:, :, None, None]


def first(tensors: Tensors) -> Tensor:
    """w1 [out1, in1]."""
    return tensors[W1] if W1 in tensors else tensors[W1_A] @ tensors[W1_B]


def second(tensors: Tensors, weight: Tensor) -> Tensor:
    """w2 [out2, in2(, kh, kw)]."""
    if W2 in tensors:
        return tensors[W2]
    if T2 in tensors:
        return spread(tensors[T2], tensors[W2_A], tensors[W2_B])
    places = weight.shape[2:]
    return (tensors[W2_A] @ tensors[W2_B]).reshape(tensors[W2_A].shape[0], -1, *places)


KIND = Lokr()
