"""Kinds whose delta is a product of small tensors, and the forward that computes the whole delta at each step."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lora_trainer.adapters.base_layer import BaseLayer, add_delta
from lora_trainer.adapters.dora import MAGNITUDE, dora_delta
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward, Kind, Tensors


class ProductKind(Kind):
    """W' = W + alpha / rank * product(tensors); with a magnitude m of DoRA, W' = m * (W + delta) / ||W + delta||."""

    @abstractmethod
    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """The bare product, in the weight's shape."""

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """All tensors; none with a magnitude, since the delta is not a product then."""
        return [] if MAGNITUDE in tensors else list(tensors.values())

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Frobenius norm of the bare product."""
        return torch.linalg.vector_norm(self.product(tensors, weight))

    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """alpha / rank * product; with a magnitude, DoRA's."""
        delta = self.product(tensors, weight) * self.scale(tensors, alpha)
        return dora_delta(weight, delta, tensors[MAGNITUDE]) if MAGNITUDE in tensors else delta

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """In float32 the delta is added to the weight, which saves a matmul; in shorter dtypes that would round small deltas away."""
        if MAGNITUDE in layer.parameters:
            return self._dora_forward(base, layer)

        def merged(x: Tensor) -> Tensor:
            return base.operation(x, add_delta(base.weight, self._dropped_product(base, layer), layer.strength), base.bias)

        def separate(x: Tensor) -> Tensor:
            output = base.forward(x)
            return torch.add(output, base.operation(x, self._dropped_product(base, layer), None), alpha=layer.strength)

        return merged if base.weight.dtype == torch.float32 else separate

    def _dora_forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        weight = base.weight

        def merged(x: Tensor) -> Tensor:
            delta = self._dropped_product(base, layer).float() * layer.scale
            gain = dora_delta(weight.float(), delta, layer.in_float32(MAGNITUDE))
            return base.operation(x, add_delta(weight, gain, layer.multiplier), base.bias)

        return merged

    def _dropped_product(self, base: BaseLayer, layer: AdapterLayer) -> Tensor:
        return drop_rows(self.product(layer.compute_dict(), base.weight), layer)


def drop_rows(product: Tensor, layer: AdapterLayer) -> Tensor:
    """Rank dropout: the product with the output rows at zero that this batch drops. The others are not scaled up."""
    p = layer.options.get("rank_dropout", 0.0)
    if layer.rng is None or not p:
        return product
    rows = product.new_empty(product.shape[0], *(1,) * (product.dim() - 1))
    return product * (layer.rng.dropout_mask(rows, p, layer.plan.name, "rows") * (1.0 - p))
