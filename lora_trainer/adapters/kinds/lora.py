"""LoRA (Hu et al. 2021): a layer gains up(down(x)) * alpha / rank; convolutions too (LoCon), also by Tucker's decomposition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.dora import MAGNITUDE, init_magnitude, is_input_axis, low_rank_norms, weight_norms
from lora_trainer.adapters.kinds.base import Forward, Layer, Tensors, kaiming, orthogonal
from lora_trainer.adapters.kinds.weighted import WeightedKind
from lora_trainer.adapters.layer_plan import LayerPlan

DOWN, MID, UP = "lora_down.weight", "lora_mid.weight", "lora_up.weight"


class Lora(WeightedKind):
    """Two small matrices, or with Tucker a third between them that alone sees the places of a convolution."""

    name = "lora"
    needed = (frozenset({DOWN, UP}),)
    known = frozenset({DOWN, MID, UP, MAGNITUDE})

    def rank(self, tensors: Tensors) -> int:
        """Rows of the lower matrix."""
        return int(tensors[DOWN].shape[0])

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], site: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """The lower matrix at random, the upper one zero."""
        if layer.options.get("init") == "orthogonal":
            orthogonal(tensors[DOWN], generator)
        else:
            kaiming(tensors[DOWN], generator)
        if MID in tensors:
            kaiming(tensors[MID], generator)
        init_magnitude(tensors, site)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """up @ down, or mid between them."""
        return product(tensors[DOWN], tensors.get(MID), tensors[UP]).reshape(weight.shape)

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Of up @ down from two small products: |U D|^2 is the sum over (U^T U) * (D D^T)."""
        if MID in tensors:
            return super().norm(tensors, weight)
        low, high = tensors[DOWN].flatten(1), tensors[UP].flatten(1)
        return ((high.t() @ high) * (low @ low.t())).sum().clamp_min(0).sqrt()

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """One addmm after the small product for a linear layer; small convolutions for the others."""
        if MAGNITUDE in layer.parameters:
            return super().forward(site, layer) if MID in layer.parameters else _with_magnitude(site, layer)
        if layer.options.get("dropout") or layer.options.get("rank_dropout"):
            return _dropped(site, layer)
        if site.linear:
            return _linear(site, layer)
        if MID in layer.parameters:
            return _tucker(site, layer)
        return _convolution(site, layer)


def product(down: Tensor, mid: Tensor | None, up: Tensor) -> Tensor:
    """[out, in * places] of a pair, [out, in, kh, kw] with a tensor between them."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("mn...,im,nj->ij...", mid, up.flatten(1), down.flatten(1))


def _linear(site: BaseLayer, layer: Layer) -> Forward:
    weight, bias = site.weight, site.bias

    def linear(x: Tensor) -> Tensor:
        down, up = layer.used
        rows = x.reshape(-1, x.shape[-1])
        base = functional.linear(rows, weight, bias)
        inner = functional.linear(rows, down)
        return torch.addmm(base, inner, up.t(), alpha=layer.strength).view(*x.shape[:-1], -1)

    return linear


def _convolution(site: BaseLayer, layer: Layer) -> Forward:
    def convolution(x: Tensor) -> Tensor:
        down, up = layer.used
        base = site.base(x)
        inner = functional.conv2d(site.call(x, down, None), up)
        return torch.add(base, inner, alpha=layer.strength)

    return convolution


def _tucker(site: BaseLayer, layer: Layer) -> Forward:
    def tucker(x: Tensor) -> Tensor:
        down, mid, up = layer.used
        base = site.base(x)
        inner = functional.conv2d(site.call(functional.conv2d(x, down), mid, None), up)
        return torch.add(base, inner, alpha=layer.strength)

    return tucker


def _with_magnitude(site: BaseLayer, layer: Layer) -> Forward:
    """The magnitude over the changed weight's length multiplies inputs or outputs, so that the changed weight is never made."""
    input_axis = is_input_axis(layer.parameters[MAGNITUDE])
    own = weight_norms(site.weight, input_axis=input_axis).flatten().square()
    place = site.channels_last

    def scaled(x: Tensor) -> Tensor:
        down, up, _ = layer.used
        length = low_rank_norms(own, site.weight, down, up, layer.scale, input_axis=input_axis)
        factor = (layer.exact(MAGNITUDE).flatten() / length).to(site.weight.dtype)
        if input_axis:
            turned = x * place(factor)
            changed = with_added(site, turned, site.bias, between(site, layer, turned), up, layer.scale)
        else:
            changed = with_added(site, x, None, between(site, layer, x), up, layer.scale)
            bias = None if site.bias is None else place(site.bias)
            changed = changed * place(factor) if bias is None else torch.addcmul(bias, changed, place(factor))
        return changed if layer.multiplier == 1.0 else torch.lerp(site.base(x), changed, layer.multiplier)

    return scaled


def with_added(site: BaseLayer, x: Tensor, bias: Tensor | None, inner: Tensor, up: Tensor, scale: float) -> Tensor:
    """The layer's own answer plus scale times up of what lies between the matrices."""
    base = site.call(x, site.weight, bias)
    if not site.linear:
        return torch.add(base, functional.conv2d(inner, up), alpha=scale)
    rows = base.reshape(-1, base.shape[-1])
    return torch.addmm(rows, inner.reshape(-1, inner.shape[-1]), up.t(), alpha=scale).view(base.shape)


def between(site: BaseLayer, layer: Layer, x: Tensor) -> Tensor:
    """down(x), of which chance leaves out single numbers (dropout) or whole ranks of a picture (rank dropout) in training."""
    down, single, ranks = layer.used[0], layer.options["dropout"], layer.options["rank_dropout"]
    tucker = MID in layer.parameters
    inner = site.call(functional.conv2d(x, down), layer.used[1], None) if tucker else site.call(x, down, None)
    if layer.rng is None:
        return inner
    if single:
        inner = inner * layer.rng.dropout_mask(inner, single, layer.plan.name, "dropout")
    if ranks:
        first = (inner.shape[0], *(1,) * (inner.dim() - 2), inner.shape[-1]) if site.linear else (*inner.shape[:2], 1, 1)
        inner = inner * layer.rng.dropout_mask(inner.new_empty(first), ranks, layer.plan.name, "rank")
    return inner


def _dropped(site: BaseLayer, layer: Layer) -> Forward:
    up_place = list(layer.parameters).index(UP)

    def dropped(x: Tensor) -> Tensor:
        return with_added(site, x, site.bias, between(site, layer, x), layer.used[up_place], layer.strength)

    return dropped


KIND = Lora()
