"""LoRA (Hu et al. 2021), also of convolutions (LoCon), with a Tucker core, and with DoRA's magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.dora import MAGNITUDE, init_magnitude, is_input_axis, low_rank_norms, weight_norms
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward, HasShape, Shapes, Tensors, kaiming_, orthogonal_
from lora_trainer.adapters.kinds.product import ProductKind
from lora_trainer.adapters.layer_plan import LayerPlan

DOWN, MID, UP = "lora_down.weight", "lora_mid.weight", "lora_up.weight"


class Lora(ProductKind):
    """W' = W + alpha / rank * B A, that is x -> W x + alpha / rank * B (A x).

    Tensors: lora_down.weight A [rank, in(, kh, kw)], lora_up.weight B [out, rank(, 1, 1)]. With `tucker`, for kernels larger than 1 x 1:
    A [rank, in, 1, 1], a core lora_mid.weight [rank, rank, kh, kw], B [out, rank, 1, 1]. dora_scale: see adapters/dora.py.

    Options: `rs_lora` (scale alpha / sqrt(rank); Kalajdzievski 2023, https://arxiv.org/abs/2312.03732), `dora` ("in" | "out", the axis of
    the magnitude), `tucker`, `init` ("orthogonal": rows of A), `dropout`, `rank_dropout`, `module_dropout`. Source: Hu et al. 2021,
    https://arxiv.org/abs/2106.09685; Tucker as in LyCORIS (Yeh et al. 2023, https://arxiv.org/abs/2309.14859)
    """

    name = "lora"

    def rank(self, tensors: Mapping[str, HasShape]) -> int:
        """Rows of A."""
        return int(tensors[DOWN].shape[0])

    def weight_size(self, shapes: Shapes) -> tuple[int, int]:
        """(rows, elements) of B A."""
        down, up, mid = shapes[DOWN], shapes[UP], shapes.get(MID)
        if len(down) not in (2, 4) or len(up) not in (2, 4) or prod(up[2:]) != 1 or up[1] != down[0]:
            return 0, 0
        if mid is not None and (len(mid) != 4 or mid[:2] != (down[0], down[0]) or prod(down[2:]) != 1):
            return 0, 0
        return up[0], up[0] * down[1] * prod(down[2:] if mid is None else mid[2:])

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], base: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """A at random, B zero."""
        if layer.options.get("init") == "orthogonal":
            orthogonal_(tensors[DOWN], generator)
        else:
            kaiming_(tensors[DOWN], generator)
        if MID in tensors:
            kaiming_(tensors[MID], generator)
        init_magnitude(tensors, base)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """B A, or with the core between them, in the weight's shape."""
        return product(tensors[DOWN], tensors.get(MID), tensors[UP]).reshape(weight.shape)

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """||B A|| from two small products: ||B A||^2 is the sum over (B^T B) * (A A^T)."""
        if MID in tensors:
            return super().norm(tensors, weight)
        down, up = tensors[DOWN].flatten(1), tensors[UP].flatten(1)
        return ((up.t() @ up) * (down @ down.t())).sum().clamp_min(0).sqrt()

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """One addmm after the small product for a linear layer, small convolutions for the others."""
        if MAGNITUDE in layer.parameters:
            return super().forward(base, layer) if MID in layer.parameters else _with_magnitude(base, layer)
        if layer.options.get("dropout") or layer.options.get("rank_dropout"):
            return _with_dropout(base, layer)
        if base.is_linear:
            return _linear(base, layer)
        if MID in layer.parameters:
            return _tucker(base, layer)
        return _convolution(base, layer)


def product(down: Tensor, mid: Tensor | None, up: Tensor) -> Tensor:
    """B A as [out, in * kh * kw]; with a core between them [out, in, kh, kw]."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("mn...,im,nj->ij...", mid, up.flatten(1), down.flatten(1))


def _linear(base: BaseLayer, layer: AdapterLayer) -> Forward:
    weight, bias = base.weight, base.bias

    def linear(x: Tensor) -> Tensor:
        down, up = layer.compute_tensors
        rows = x.reshape(-1, x.shape[-1])
        output = functional.linear(rows, weight, bias)
        inner = functional.linear(rows, down)
        return torch.addmm(output, inner, up.t(), alpha=layer.strength).view(*x.shape[:-1], -1)

    return linear


def _convolution(base: BaseLayer, layer: AdapterLayer) -> Forward:
    def convolution(x: Tensor) -> Tensor:
        down, up = layer.compute_tensors
        output = base.forward(x)
        inner = functional.conv2d(base.operation(x, down, None), up)
        return torch.add(output, inner, alpha=layer.strength)

    return convolution


def _tucker(base: BaseLayer, layer: AdapterLayer) -> Forward:
    def tucker(x: Tensor) -> Tensor:
        down, mid, up = layer.compute_tensors
        output = base.forward(x)
        inner = functional.conv2d(base.operation(functional.conv2d(x, down), mid, None), up)
        return torch.add(output, inner, alpha=layer.strength)

    return tucker


def _with_magnitude(base: BaseLayer, layer: AdapterLayer) -> Forward:
    """DoRA without building the changed weight: m / ||W + delta|| multiplies the inputs or the outputs."""
    input_axis = is_input_axis(layer.parameters[MAGNITUDE])
    squared_norms = weight_norms(base.weight, input_axis=input_axis).flatten().square()
    broadcast = base.broadcast_channels

    def with_magnitude(x: Tensor) -> Tensor:
        down, up, _ = layer.compute_tensors
        norms = low_rank_norms(squared_norms, base.weight, down, up, layer.scale, input_axis=input_axis)
        factor = (layer.in_float32(MAGNITUDE).flatten() / norms).to(base.weight.dtype)
        if input_axis:
            scaled = x * broadcast(factor)
            output = add_up_projection(base, scaled, base.bias, down_projection(base, layer, scaled), up, layer.scale)
        else:
            output = add_up_projection(base, x, None, down_projection(base, layer, x), up, layer.scale)
            bias = None if base.bias is None else broadcast(base.bias)
            output = output * broadcast(factor) if bias is None else torch.addcmul(bias, output, broadcast(factor))
        return output if layer.multiplier == 1.0 else torch.lerp(base.forward(x), output, layer.multiplier)

    return with_magnitude


def add_up_projection(base: BaseLayer, x: Tensor, bias: Tensor | None, inner: Tensor, up: Tensor, scale: float) -> Tensor:
    """base(x) + scale * up(inner), `inner` being down(x)."""
    output = base.operation(x, base.weight, bias)
    if not base.is_linear:
        return torch.add(output, functional.conv2d(inner, up), alpha=scale)
    rows = output.reshape(-1, output.shape[-1])
    return torch.addmm(rows, inner.reshape(-1, inner.shape[-1]), up.t(), alpha=scale).view(output.shape)


def down_projection(base: BaseLayer, layer: AdapterLayer, x: Tensor) -> Tensor:
    """down(x), in training with dropout of single values and of whole ranks of an image."""
    down, dropout, rank_dropout = layer.compute_tensors[0], layer.options["dropout"], layer.options["rank_dropout"]
    tucker = MID in layer.parameters
    inner = base.operation(functional.conv2d(x, down), layer.compute_tensors[1], None) if tucker else base.operation(x, down, None)
    if layer.rng is None:
        return inner
    if dropout:
        inner = inner * layer.rng.dropout_mask(inner, dropout, layer.plan.name, "dropout")
    if rank_dropout:
        ranks = (inner.shape[0], *(1,) * (inner.dim() - 2), inner.shape[-1]) if base.is_linear else (*inner.shape[:2], 1, 1)
        inner = inner * layer.rng.dropout_mask(inner.new_empty(ranks), rank_dropout, layer.plan.name, "rank")
    return inner


def _with_dropout(base: BaseLayer, layer: AdapterLayer) -> Forward:
    up_index = list(layer.parameters).index(UP)

    def with_dropout(x: Tensor) -> Tensor:
        return add_up_projection(base, x, base.bias, down_projection(base, layer, x), layer.compute_tensors[up_index], layer.strength)

    return with_dropout


KIND = Lora()
