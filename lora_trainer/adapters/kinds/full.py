"""The full difference of a weight, and of its bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer, add_delta
from lora_trainer.adapters.kinds.base import Forward, Kind, Layer, Tensors
from lora_trainer.adapters.layer_plan import LayerPlan


class Full(Kind):
    """Adds a tensor of the weight's own shape."""

    name = "full"
    needed = (frozenset({"diff"}),)
    known = frozenset({"diff", "diff_b"})
    weight_suffix, bias_suffix = "diff", "diff_b"

    def rank(self, tensors: Tensors) -> int:
        """None: 1."""
        return 1

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """1, whatever a file says of alpha."""
        return 1.0

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], site: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """Zeros it is."""

    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """The tensor itself."""
        return tensors[self.weight_suffix].reshape(weight.shape)

    def bias_delta(self, tensors: Tensors) -> Tensor | None:
        """The bias's."""
        return tensors.get(self.bias_suffix)

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """The difference alone: the bias's has no part in its norm."""
        return [tensors[self.weight_suffix]]

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """The difference's."""
        return torch.linalg.vector_norm(tensors[self.weight_suffix])

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """The operation with changed weight and bias: as training the weights themselves, with float32 copies of them."""

        def changed(x: Tensor) -> Tensor:
            diff, *rest = layer.used
            bias = add_delta(site.bias, rest[0], layer.strength) if rest and site.bias is not None else site.bias
            return site.call(x, add_delta(site.weight, diff, layer.strength), bias)

        return changed


KIND = Full()
