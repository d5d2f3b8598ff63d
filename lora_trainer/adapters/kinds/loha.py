"""LoHa (Hyeon-Woo et al. 2021, FedPara): the product, number by number, of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.dora import MAGNITUDE, init_magnitude
from lora_trainer.adapters.kinds.base import Forward, Layer, Tensors, normal
from lora_trainer.adapters.kinds.lora import with_added
from lora_trainer.adapters.kinds.weighted import WeightedKind
from lora_trainer.adapters.layer_plan import LayerPlan

FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")


class Loha(WeightedKind):
    """(a1 @ b1) * (a2 @ b2); with Tucker each factor has a core that sees the places of a convolution."""

    name = "loha"
    needed = (frozenset(FACTORS),)
    known = frozenset({*FACTORS, *CORES, MAGNITUDE})

    def rank(self, tensors: Tensors) -> int:
        """Rows of b."""
        return int(tensors["hada_w1_b"].shape[0])

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], site: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """b with deviation 1, the first a and the cores with 0.1; the second a is zero."""
        for suffix, std in (("hada_t1", 0.1), ("hada_t2", 0.1), ("hada_w1_a", 0.1), ("hada_w1_b", 1.0), ("hada_w2_b", 1.0)):
            if suffix in tensors:
                normal(tensors[suffix], std, generator)
        init_magnitude(tensors, site)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Both factors, multiplied number by number."""
        w1_a, w1_b, w2_a, w2_b = (tensors[suffix] for suffix in FACTORS)
        if "hada_t1" in tensors:
            return spread(tensors["hada_t1"], w1_a, w1_b) * spread(tensors["hada_t2"], w2_a, w2_b)
        return Hadamard.apply(w1_a, w1_b, w2_a, w2_b).reshape(weight.shape)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """As a product of matrices of rank^2, or with the addition calculated: what costs less for so many inputs."""
        by_weight = super().forward(site, layer)
        if MAGNITUDE in layer.parameters or "hada_t1" in layer.parameters or layer.options["rank_dropout"]:
            return by_weight
        out, into = site.weight.flatten(1).shape
        rank, whole = self.rank(layer.parameters), site.weight.dtype == torch.float32

        def cheapest(x: Tensor) -> Tensor:
            places = x.numel() // site.weight.shape[1]
            through = rank * rank * (out + into) * (3 * places + 6 * COPY)
            changed = out * into * (8 * rank + (1 if whole else 3) * places + 4 * COPY)
            return by_weight(x) if changed < through else squared(site, layer, x)

        return cheapest


COPY = 10
"""What one number costs that is only read and written, in multiplications of a matrix product."""


def squared(site: BaseLayer, layer: Layer, x: Tensor) -> Tensor:
    """(a1 b1) * (a2 b2) is one product of rank^2: of all products of a column of a1 and one of a2, and of rows of b1 and b2."""
    w1_a, w1_b, w2_a, w2_b = layer.used
    low = (w1_b[:, None] * w2_b[None]).flatten(0, 1).reshape(-1, *site.weight.shape[1:])
    high = (w1_a[:, :, None] * w2_a[:, None]).flatten(1)
    high = high if site.linear else high[:, :, None, None]
    return with_added(site, x, site.bias, site.call(x, low, None), high, layer.strength)


class Hadamard(torch.autograd.Function):
    """(a1 @ b1) * (a2 @ b2), of which only the small matrices are kept: both products are calculated again for the gradient."""

    @staticmethod
    def forward(ctx: Any, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        """All four are matrices: [out, rank], [rank, in], twice."""
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b)
        return (w1_a @ w1_b).mul_(w2_a @ w2_b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """The product rule, twice."""
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        whole = gradients[0].to(w1_a.dtype)
        first, second = whole * (w2_a @ w2_b), whole * (w1_a @ w1_b)
        return first @ w1_b.t(), w1_a.t() @ first, second @ w2_b.t(), w2_a.t() @ second


def spread(core: Tensor, to_out: Tensor, to_in: Tensor) -> Tensor:
    """[out, in, kh, kw] of a core [rank, rank, kh, kw] with [rank, out] and [rank, in] (Tucker's decomposition)."""
    inner = torch.einsum("ij...,jr->ir...", core, to_in)
    return torch.einsum("ir...,ip->pr...", inner, to_out)


KIND = Loha()
