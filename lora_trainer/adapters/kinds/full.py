"""The full difference of a weight and of its bias: fine-tuning, saved as a network."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer, add_delta
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward, HasShape, Kind, Shapes, Tensors
from lora_trainer.adapters.layer_plan import LayerPlan


class Full(Kind):
    """W' = W + diff, b' = b + diff_b; no rank, no alpha.

    Tensors: diff in the weight's shape [out, in(, kh, kw)], diff_b [out]; both start at zero.

    Options: `bias`, whether the bias is trained. Source: the `full` algorithm of LyCORIS (Yeh et al. 2023,
    https://arxiv.org/abs/2309.14859)
    """

    name = "full"
    weight_suffix, bias_suffix = "diff", "diff_b"

    def rank(self, tensors: Mapping[str, HasShape]) -> int:
        """1: it has none."""
        return 1

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """1, whatever alpha a file holds."""
        return 1.0

    def weight_size(self, shapes: Shapes) -> tuple[int, int]:
        """(rows, elements) of the difference; (0, 0) for a scalar."""
        shape = shapes[self.weight_suffix]
        return (shape[0], prod(shape)) if shape else (0, 0)

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], base: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """They stay at zero."""

    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """The difference itself."""
        return tensors[self.weight_suffix].reshape(weight.shape)

    def bias_delta(self, tensors: Tensors) -> Tensor | None:
        """The bias's difference."""
        return tensors.get(self.bias_suffix)

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """The weight's difference alone: the bias's does not count towards the norm."""
        return [tensors[self.weight_suffix]]

    def norm(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """Frobenius norm of the weight's difference."""
        return torch.linalg.vector_norm(tensors[self.weight_suffix])

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """The operation with changed weight and bias, as fine-tuning with float32 master weights."""

        def changed(x: Tensor) -> Tensor:
            diff, *rest = layer.compute_tensors
            bias = add_delta(base.bias, rest[0], layer.strength) if rest and base.bias is not None else base.bias
            return base.operation(x, add_delta(base.weight, diff, layer.strength), bias)

        return changed


KIND = Full()
