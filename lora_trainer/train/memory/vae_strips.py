"""The VAE on horizontal strips of its feature maps: under half of the memory, the same result but for rounding.

A convolution needs one row above and below its strip, and a group norm the mean and variance of the whole map, which are taken from the
strips first. So only the maps between the layers exist as a whole, and none that a layer makes inside. Tiles that are encoded each for
itself would need less still, but each has a norm of its own, and latents with seams are what a network would learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIP_CELLS = 2**15
"""Cells of the feature map in one strip."""


def apply(vae: nn.Module) -> None:
    """Makes the blocks of a diffusers AutoencoderKL work on strips, without gradients, until `remove`."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.forward = partial(_resnet, module)  # type: ignore[method-assign]
        elif isinstance(module, Upsample2D) and isinstance(module.conv, nn.Conv2d):
            module.forward = partial(_upsample, module)  # type: ignore[method-assign]


def remove(vae: nn.Module) -> None:
    """Undoes `apply`."""
    for module in vae.modules():
        if isinstance(module.__dict__.get("forward"), partial):
            del module.__dict__["forward"]


def _resnet(block: Any, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    """conv2(act(norm2(conv1(act(norm1(h)))))) + shortcut(h); where the shortcut changes nothing, the sum is written into h."""
    inner = _norm_act_conv(block, block.norm1, block.conv1, hidden)
    shortcut = block.conv_shortcut
    output = hidden if shortcut is None else hidden.new_empty(hidden.shape[0], shortcut.out_channels, *hidden.shape[2:])
    normed = _group_norm(block.norm2, inner)
    for top, bottom in _strips(inner):
        residual = hidden[:, :, top:bottom]
        residual = residual if shortcut is None else shortcut(residual)
        strip = _conv(block.conv2, lambda rows: block.nonlinearity(normed(rows)), inner, top, bottom)
        torch.div(residual + strip, block.output_scale_factor, out=output[:, :, top:bottom])
    return output


def _norm_act_conv(block: Any, norm: nn.GroupNorm, conv: nn.Conv2d, hidden: Tensor) -> Tensor:
    output = hidden.new_empty(hidden.shape[0], conv.out_channels, *hidden.shape[2:])
    normed = _group_norm(norm, hidden)
    for top, bottom in _strips(hidden):
        output[:, :, top:bottom] = _conv(conv, lambda rows: block.nonlinearity(normed(rows)), hidden, top, bottom)
    return output


def _upsample(module: Any, hidden: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
    """Twice the size by repeated cells, then a convolution."""
    count, _channels, height, width = hidden.shape
    output = hidden.new_empty(count, module.conv.out_channels, 2 * height, 2 * width)
    for top, bottom in _strips(hidden):
        first, last = max(0, top - 1), min(height, bottom + 1)
        rows = functional.interpolate(hidden[:, :, first:last], scale_factor=2.0, mode="nearest")
        start = 2 * (top - first)  # of the strip's own rows, less the one above them
        rows = rows[:, :, max(0, start - 1) : start + 2 * (bottom - top) + 1]
        rows = functional.pad(rows, (0, 0, int(first == top), int(last == bottom)))
        output[:, :, 2 * top : 2 * bottom] = functional.conv2d(rows, module.conv.weight, module.conv.bias, padding=(0, 1))
    return output


def _conv(conv: nn.Conv2d, before: Callable[[Tensor], Tensor], hidden: Tensor, top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom` of the 3x3 convolution of before(hidden), which is zero outside."""
    height = hidden.shape[2]
    rows = before(hidden[:, :, max(0, top - 1) : bottom + 1])
    rows = functional.pad(rows, (0, 0, int(top == 0), int(bottom == height)))
    return functional.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))


def _group_norm(norm: nn.GroupNorm, hidden: Tensor) -> Callable[[Tensor], Tensor]:
    """The group norm of rows of `hidden`, by the mean and variance of all of it, as a factor and a summand for each channel."""
    count, channels, height, _ = hidden.shape
    parts = []
    for top, bottom in _strips(hidden):
        groups = hidden[:, :, top:bottom].float().reshape(count, norm.num_groups, -1)
        parts.append(((bottom - top) / height, *torch.var_mean(groups, dim=2, unbiased=False)))
    mean = sum(share * each for share, _, each in parts)
    variance = sum(share * (each + (own - mean) ** 2) for share, each, own in parts)
    scale = torch.rsqrt(torch.as_tensor(variance) + norm.eps).repeat_interleave(channels // norm.num_groups, dim=1) * norm.weight.float()
    shift = norm.bias.float() - torch.as_tensor(mean).repeat_interleave(channels // norm.num_groups, dim=1) * scale
    factor, summand = scale[:, :, None, None], shift[:, :, None, None]
    return lambda rows: torch.addcmul(summand, rows.float(), factor).to(rows.dtype)


def _strips(hidden: Tensor) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each strip."""
    height, width = hidden.shape[2:]
    rows = max(1, STRIP_CELLS // width)
    return ((top, min(height, top + rows)) for top in range(0, height, rows))
