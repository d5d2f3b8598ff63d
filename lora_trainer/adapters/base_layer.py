"""A frozen layer as adapters see it: its weight, its bias, and the operation that uses them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.choices.networks import LayerShape

Operation = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""(x, weight, bias) -> output."""


@attrs.frozen(eq=False)
class BaseLayer:
    """A frozen layer. `operation(x, weight, bias)` runs it with any weight and bias, at its own stride, padding, groups or epsilon."""

    weight: Tensor
    bias: Tensor | None
    operation: Operation
    is_linear: bool

    @property
    def shape(self) -> LayerShape:
        """The shape of the weight, and whether there is a bias."""
        return LayerShape(tuple(self.weight.shape), self.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        """The output without any adapter."""
        return self.operation(x, self.weight, self.bias)

    def broadcast_channels(self, values: Tensor) -> Tensor:
        """[channels] in the shape that broadcasts over an input or output of the layer."""
        return values if self.is_linear else values.reshape(1, -1, *(1,) * (self.weight.dim() - 2))


def base_layer(module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> BaseLayer:
    """The base layer of a linear, convolution, layer norm or group norm; `weight` and `bias` replace the module's own.

    Raises TypeError for any other module.
    """
    weight = module.weight if weight is None else weight  # type: ignore[assignment]
    bias = module.bias if bias is None else bias  # type: ignore[assignment]
    return BaseLayer(weight, bias, operation(module), isinstance(module, nn.Linear))  # type: ignore[arg-type]


def operation(module: nn.Module) -> Operation:
    """The layer's operation with weight and bias as arguments. Raises TypeError for a module that adapters do not support."""
    if isinstance(module, nn.Linear):
        return functional.linear
    if isinstance(module, nn.Conv2d):
        stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
        return lambda x, weight, bias: functional.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    if isinstance(module, nn.LayerNorm):
        shape, eps = list(module.normalized_shape), module.eps
        return lambda x, weight, bias: functional.layer_norm(x, shape, weight, bias, eps)
    if isinstance(module, nn.GroupNorm):
        return partial(_group_norm, module.num_groups, module.eps)
    raise TypeError(f"{type(module).__name__} is not supported by networks")


def _group_norm(groups: int, eps: float, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.group_norm(x, groups, weight, bias, eps)


def add_delta(weight: Tensor, delta: Tensor, scale: float) -> Tensor:
    """weight + scale * delta in the weight's dtype; summed in float32 unless both are."""
    if weight.dtype == delta.dtype == torch.float32:
        return torch.add(weight, delta, alpha=scale)
    return torch.add(weight.float(), delta.float(), alpha=scale).to(weight.dtype)
