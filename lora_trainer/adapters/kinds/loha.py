"""LoHa (Hyeon-Woo et al. 2021, FedPara): the product, number by number, of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.adapters.kinds.base import Tensors, normal
from lora_trainer.adapters.kinds.weighted import WeightedKind
from lora_trainer.adapters.magnitude import MAGNITUDE, begin_magnitude
from lora_trainer.adapters.plan import LayerPlan
from lora_trainer.adapters.site import Site

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

    def begin(self, tensors: Mapping[str, nn.Parameter], site: Site, layer: LayerPlan, generator: torch.Generator) -> None:
        """b with deviation 1, the first a and the cores with 0.1; the second a is zero."""
        for suffix, std in (("hada_t1", 0.1), ("hada_t2", 0.1), ("hada_w1_a", 0.1), ("hada_w1_b", 1.0), ("hada_w2_b", 1.0)):
            if suffix in tensors:
                normal(tensors[suffix], std, generator)
        begin_magnitude(tensors, site)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Both factors, multiplied number by number."""
        w1_a, w1_b, w2_a, w2_b = (tensors[suffix] for suffix in FACTORS)
        if "hada_t1" in tensors:
            return spread(tensors["hada_t1"], w1_a, w1_b) * spread(tensors["hada_t2"], w2_a, w2_b)
        return Hadamard.apply(w1_a, w1_b, w2_a, w2_b).reshape(weight.shape)  # type: ignore[no-any-return, no-untyped-call]


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
