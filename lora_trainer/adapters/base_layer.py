"""Where an addition is calculated: a layer's frozen weight and bias, and the operation that reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.choices.networks import LayerShape

Operation = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@attrs.frozen(eq=False)
class BaseLayer:
    """`call(x, weight, bias)` is the layer's operation with any weight of the same kind: its stride, padding, groups, epsilon."""

    weight: Tensor
    bias: Tensor | None
    call: Operation
    linear: bool

    @property
    def shape(self) -> LayerShape:
        """Of weight and bias."""
        return LayerShape(tuple(self.weight.shape), self.bias is not None)

    def base(self, x: Tensor) -> Tensor:
        """What the layer says without any addition."""
        return self.call(x, self.weight, self.bias)

    def channels_last(self, values: Tensor) -> Tensor:
        """[channels] in the shape that multiplies an input or output of the layer."""
        return values if self.linear else values.reshape(1, -1, *(1,) * (self.weight.dim() - 2))


def base_layer(module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> BaseLayer:
    """The site of a linear, convolution, layer norm or group norm; `weight` and `bias` stand in for the module's own where given."""
    held = module.weight if weight is None else weight
    given = module.bias if bias is None else bias
    return BaseLayer(held, given, operation(module), isinstance(module, nn.Linear))  # type: ignore[arg-type]


def operation(module: nn.Module) -> Operation:
    """The layer's operation on another weight. Raises TypeError for a module that networks cannot stand on."""
    if isinstance(module, nn.Linear):
        return functional.linear
    if isinstance(module, nn.Conv2d):
        stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
        return lambda x, weight, bias: functional.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    if isinstance(module, nn.LayerNorm):
        shape, small = list(module.normalized_shape), module.eps
        return lambda x, weight, bias: functional.layer_norm(x, shape, weight, bias, small)
    if isinstance(module, nn.GroupNorm):
        return partial(_group_norm, module.num_groups, module.eps)
    raise TypeError(f"{type(module).__name__} is no layer that a network can stand on")


def _group_norm(groups: int, small: float, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.group_norm(x, groups, weight, bias, small)


def add_delta(weight: Tensor, delta: Tensor, strength: float) -> Tensor:
    """weight + strength * delta in the weight's format; added up in float32 where either is shorter."""
    if weight.dtype == delta.dtype == torch.float32:
        return torch.add(weight, delta, alpha=strength)
    return torch.add(weight.float(), delta.float(), alpha=strength).to(weight.dtype)
