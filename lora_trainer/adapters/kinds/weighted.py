"""Kinds that calculate their whole addition to a weight at each step, because no cheaper form is right."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lora_trainer.adapters.base_layer import BaseLayer, add_delta
from lora_trainer.adapters.dora import MAGNITUDE, decomposed
from lora_trainer.adapters.kinds.base import Forward, Kind, Layer, Tensors


class WeightedKind(Kind):
    """A kind whose addition is `product(tensors)` times alpha / rank, with a magnitude where the layer has one."""

    @abstractmethod
    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """The bare addition in the weight's shape."""

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """All but a magnitude, with which the addition is no product."""
        return [] if MAGNITUDE in tensors else list(tensors.values())

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Of the whole product."""
        return torch.linalg.vector_norm(self.product(tensors, weight))

    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """Scaled, and decomposed where there is a magnitude."""
        plain = self.product(tensors, weight) * self.scale(tensors, alpha)
        return decomposed(weight, plain, tensors[MAGNITUDE]) if MAGNITUDE in tensors else plain

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """In float32 the weight is changed, which saves a product; in shorter formats that would round small additions away."""
        if MAGNITUDE in layer.parameters:
            return self._decomposed(site, layer)
        whole = site.weight.dtype == torch.float32

        def changed(x: Tensor) -> Tensor:
            return site.call(x, add_delta(site.weight, self._added(site, layer), layer.strength), site.bias)

        def beside(x: Tensor) -> Tensor:
            base = site.base(x)
            return torch.add(base, site.call(x, self._added(site, layer), None), alpha=layer.strength)

        return changed if whole else beside

    def _decomposed(self, site: BaseLayer, layer: Layer) -> Forward:
        weight = site.weight

        def changed(x: Tensor) -> Tensor:
            plain = self._added(site, layer).float() * layer.scale
            gain = decomposed(weight.float(), plain, layer.exact(MAGNITUDE))
            return site.call(x, add_delta(weight, gain, layer.multiplier), site.bias)

        return changed

    def _added(self, site: BaseLayer, layer: Layer) -> Tensor:
        return rows_kept(self.product(layer.named(), site.weight), layer)


def rows_kept(product: Tensor, layer: Layer) -> Tensor:
    """The addition without the outputs that rank dropout leaves out in this batch."""
    share = layer.options.get("rank_dropout", 0.0)
    if layer.rng is None or not share:
        return product
    rows = product.new_empty(product.shape[0], *(1,) * (product.dim() - 1))
    return product * (layer.rng.dropout_mask(rows, share, layer.plan.name, "rows") * (1.0 - share))
