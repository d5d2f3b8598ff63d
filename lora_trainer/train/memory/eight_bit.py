"""A frozen U-Net with weights in fp8: each weight is cast to the compute dtype for the moment it is used.

Backward keeps the fp8 weights only and casts them once more. This halves the memory of a U-Net in fp16; the effect of the lower
precision on quality has not been measured yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.load import load
from lora_trainer.models.source import LiveSource, ModelSource

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest value of the format; larger ones are clamped to it."""
KEPT_PARTS = ("conv_in", "conv_out", "time_embedding", "add_embedding")
"""Parts of a U-Net that are not quantized: they are small, and everything goes through them."""


class Fp8Weight(Tensor):
    """A weight in fp8 that linear layers and convolutions accept like any other. It has no gradient."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear:
            return _linear(*args, **kwargs)
        if function in (functional.conv2d, torch.conv2d):
            return _convolution(*args, **kwargs)
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def quantize(cls, weight: Tensor) -> Fp8Weight:
        """The weight rounded to fp8."""
        return weight.detach().float().clamp(-FP8_MAX, FP8_MAX).to(FP8).as_subclass(cls)


class _Linear(torch.autograd.Function):
    """x [..., in] times a weight [out, in]; only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None, None


class _Convolution(torch.autograd.Function):
    """x [n, in, h, w] convolved with a weight [out, in / groups, kh, kw]; only x gets a gradient, and x is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype, ctx.shape, ctx.options = x.dtype, x.shape, options
        return functional.conv2d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), *options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        input_gradient = torch.nn.grad.conv2d_input(ctx.shape, weight.to(gradient.dtype), gradient.contiguous(), *ctx.options)
        return input_gradient.to(ctx.dtype), None, None, None, None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight.as_subclass(Tensor), bias, _compute_dtype(input))  # type: ignore[no-any-return, no-untyped-call]


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    options = (stride, padding, dilation, groups)
    return _Convolution.apply(input, weight.as_subclass(Tensor), bias, _compute_dtype(input), options)  # type: ignore[no-any-return, no-untyped-call]


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype; without autocast the input's own."""
    device = x.device.type
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else x.dtype
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else x.dtype


def quantize_unet(unet: nn.Module) -> None:
    """Quantizes the weights of linear layers and convolutions in a U-Net, except for KEPT_PARTS; norms and biases stay as they are."""
    for name, module in unet.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d) and not name.startswith(KEPT_PARTS):
            module.weight = nn.Parameter(Fp8Weight.quantize(module.weight), requires_grad=False)  # type: ignore[arg-type]


def is_quantized(source: ModelSource, *, fp8: bool) -> bool:
    """Whether a model is quantized: only one that the trainer loads itself is."""
    return fp8 and not isinstance(source, LiveSource)


def load_bundle(source: ModelSource, device: torch.device, dtype: torch.dtype, *, fp8: bool) -> ModelBundle:
    """Loads a source; with `fp8` the U-Net is quantized, unless a host lends it. Raises ModelError.

    What is read from a file stays on the CPU: each part is moved to the device when it is needed, so that a device which holds the largest
    of them is enough, and never sees the weights that are quantized.
    """
    bundle = load(source, device, dtype, weights_on=torch.device("cpu"))
    if is_quantized(source, fp8=fp8):
        quantize_unet(bundle.unet)
    return bundle
