"""A frozen U-Net whose matrices lie in eight bits: each is brought to the format of the calculation for the moment it is used.

Nothing is kept of that for the backward pass but the eight bits, which are brought to it once more there. A way to need half of the
memory that a U-Net takes in fp16; what its coarser numbers cost is not measured yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.load import load
from lora_trainer.models.source import LiveSource, ModelSource

EIGHT = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of the format; larger ones become it."""
WHOLE = ("conv_in", "conv_out", "time_embedding", "add_embedding")
"""Parts of a U-Net that stay as they are: small, and everything goes through them."""


class EightBit(Tensor):
    """A matrix in eight bits that linear layers and convolutions take like any other. Its gradient is never asked for."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear:
            return _linear(*args, **kwargs)
        if function in (functional.conv2d, torch.conv2d):
            return _convolution(*args, **kwargs)
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def of(cls, matrix: Tensor) -> EightBit:
        """The nearest numbers of eight bits."""
        return matrix.detach().float().clamp(-LARGEST, LARGEST).to(EIGHT).as_subclass(cls)


class _Linear(torch.autograd.Function):
    """x [..., in] through a matrix [out, in]; the gradient goes back to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.given = x.dtype
        return functional.linear(x.to(dtype), matrix.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (matrix,) = ctx.saved_tensors
        return (gradient @ matrix.to(gradient.dtype)).to(ctx.given), None, None, None


class _Convolution(torch.autograd.Function):
    """x [n, in, h, w] through a matrix [out, in / groups, kh, kw]; the gradient goes back to x alone, which is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor | None, dtype: torch.dtype, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.given, ctx.shape, ctx.how = x.dtype, x.shape, how
        return functional.conv2d(x.to(dtype), matrix.to(dtype), None if bias is None else bias.to(dtype), *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (matrix,) = ctx.saved_tensors
        back = torch.nn.grad.conv2d_input(ctx.shape, matrix.to(gradient.dtype), gradient.contiguous(), *ctx.how)
        return back.to(ctx.given), None, None, None, None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight.as_subclass(Tensor), bias, _format(input))  # type: ignore[no-any-return, no-untyped-call]


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    how = (stride, padding, dilation, groups)
    return _Convolution.apply(input, weight.as_subclass(Tensor), bias, _format(input), how)  # type: ignore[no-any-return, no-untyped-call]


def _format(x: Tensor) -> torch.dtype:
    """What autocast would calculate in; without it, the input's own."""
    device = x.device.type
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else x.dtype
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else x.dtype


def hold(unet: nn.Module) -> None:
    """Brings the matrices of a U-Net's blocks into eight bits; norms, biases and what stands before and behind the blocks stay."""
    for name, module in unet.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d) and not name.startswith(WHOLE):
            module.weight = nn.Parameter(EightBit.of(module.weight), requires_grad=False)  # type: ignore[arg-type]


def applies(source: ModelSource, *, asked: bool) -> bool:
    """Whether the model is held so: only one that the trainer reads for itself."""
    return asked and not isinstance(source, LiveSource)


def loaded(source: ModelSource, device: torch.device, dtype: torch.dtype, *, asked: bool) -> ModelBundle:
    """The bundle of a source, its U-Net in eight bits where that is `asked` for and applies. Raises ModelError.

    It is made small before it reaches the device, which never holds the whole.
    """
    if not applies(source, asked=asked):
        return load(source, device, dtype)
    bundle = load(source, torch.device("cpu"), dtype)
    hold(bundle.unet)
    for part in bundle.modules():
        part.to(device)
    bundle.alphas_cumprod, bundle.device = bundle.alphas_cumprod.to(device), device
    return bundle
