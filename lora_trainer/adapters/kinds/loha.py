"""LoHa (Hyeon-Woo et al. 2021, FedPara): the Hadamard product of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.dora import MAGNITUDE, init_magnitude
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward, HasShape, Shapes, Tensors, factor_size, normal_
from lora_trainer.adapters.kinds.lora import add_up_projection
from lora_trainer.adapters.kinds.product import ProductKind
from lora_trainer.adapters.layer_plan import LayerPlan

FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class Loha(ProductKind):
    """W' = W + alpha / rank * (A1 B1) * (A2 B2), the products multiplied element by element: a rank of up to rank^2.

    Tensors: hada_w1_a, hada_w2_a (A1, A2) [out, rank]; hada_w1_b, hada_w2_b (B1, B2) [rank, in * kh * kw]. With `tucker`, for kernels
    larger than 1 x 1: hada_t1, hada_t2 [rank, rank, kh, kw], A [rank, out], B [rank, in]. dora_scale: see adapters/dora.py.

    Options: `rs_lora`, `dora`, `tucker`, `rank_dropout`, `module_dropout`. Source: Hyeon-Woo et al. 2021, prop. 1 and 3,
    https://arxiv.org/abs/2108.06098
    """

    name = "loha"

    def rank(self, tensors: Mapping[str, HasShape]) -> int:
        """Rows of B."""
        return int(tensors["hada_w1_b"].shape[0])

    def weight_size(self, shapes: Shapes) -> tuple[int, int]:
        """(rows, elements) of both products; (0, 0) where they differ."""
        sizes = {factor_size(shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"], shapes.get(f"hada_t{n}")) for n in (1, 2)}
        return sizes.pop() if len(sizes) == 1 else (0, 0)

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], base: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """B normal with deviation 1, A1 and the cores with 0.1; A2 is zero."""
        for suffix, std in (("hada_t1", 0.1), ("hada_t2", 0.1), ("hada_w1_a", 0.1), ("hada_w1_b", 1.0), ("hada_w2_b", 1.0)):
            if suffix in tensors:
                normal_(tensors[suffix], std, generator)
        init_magnitude(tensors, base)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """(A1 B1) * (A2 B2) in the weight's shape."""
        w1_a, w1_b, w2_a, w2_b = (tensors[suffix] for suffix in FACTORS)
        if "hada_t1" in tensors:
            return tucker_weight(tensors["hada_t1"], w1_a, w1_b) * tucker_weight(tensors["hada_t2"], w2_a, w2_b)
        return Hadamard.apply(w1_a, w1_b, w2_a, w2_b).reshape(weight.shape)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """As one LoRA of rank^2, or with the whole delta: whichever costs less for so many inputs."""
        whole_delta = super().forward(base, layer)
        if MAGNITUDE in layer.parameters or "hada_t1" in layer.parameters or layer.options["rank_dropout"]:
            return whole_delta
        out, columns = base.weight.flatten(1).shape
        rank, is_float32 = self.rank(layer.parameters), base.weight.dtype == torch.float32

        def cheapest(x: Tensor) -> Tensor:
            positions = x.numel() // base.weight.shape[1]
            squared_cost = rank * rank * (out + columns) * (3 * positions + 6 * ELEMENTWISE_COST)
            delta_cost = out * columns * (8 * rank + (1 if is_float32 else 3) * positions + 4 * ELEMENTWISE_COST)
            return whole_delta(x) if delta_cost < squared_cost else rank_squared_forward(base, layer, x)

        return cheapest


ELEMENTWISE_COST = 10
"""Cost of reading and writing one element, in multiplications of a matrix product."""


def rank_squared_forward(base: BaseLayer, layer: AdapterLayer, x: Tensor) -> Tensor:
    """(A1 B1) * (A2 B2) as one product of rank^2: of all products of a column of A1 and one of A2, and of rows of B1 and B2."""
    w1_a, w1_b, w2_a, w2_b = layer.compute_tensors
    down = (w1_b[:, None] * w2_b[None]).flatten(0, 1).reshape(-1, *base.weight.shape[1:])
    up = (w1_a[:, :, None] * w2_a[:, None]).flatten(1)
    up = up if base.is_linear else up[:, :, None, None]
    return add_up_projection(base, x, base.bias, base.operation(x, down, None), up, layer.strength)


class Hadamard(torch.autograd.Function):
    """(A1 B1) * (A2 B2) that saves only the small matrices: backward computes both products again."""

    @staticmethod
    def forward(ctx: Any, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        """Matrices [out, rank], [rank, columns], twice -> [out, columns]."""
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b)
        return (w1_a @ w1_b).mul_(w2_a @ w2_b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """The product rule, for both factors."""
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        gradient = gradients[0].to(w1_a.dtype)
        first, second = gradient * (w2_a @ w2_b), gradient * (w1_a @ w1_b)
        return first @ w1_b.t(), w1_a.t() @ first, second @ w2_b.t(), w2_a.t() @ second


def tucker_weight(core: Tensor, to_out: Tensor, to_in: Tensor) -> Tensor:
    """[out, in, kh, kw] from a core [rank, rank, kh, kw], [rank, out] and [rank, in] (Tucker decomposition)."""
    inner = torch.einsum("ij...,jr->ir...", core, to_in)
    return torch.einsum("ir...,ip->pr...", inner, to_out)


KIND = Loha()
