"""DoRA (Liu et al. 2024): the changed weight keeps its direction, and gets its length along one axis from a learned magnitude.

Axis "in": one magnitude for each input channel, shape (1, in(, 1, 1)); this is what hosts reproduce. Axis "out": one for each output,
shape (out, 1(, 1, 1)), as the paper has it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer

MAGNITUDE = "dora_scale"
TINY = torch.finfo(torch.float32).eps


def is_input_axis(magnitude: Tensor) -> bool:
    """Whether a `dora_scale` holds one number for each input channel."""
    return magnitude.shape[0] == 1 and magnitude.numel() > 1


def weight_norms(weight: Tensor, *, input_axis: bool) -> Tensor:
    """The length of a weight [out, in(, kh, kw)] for each input channel or output, in the shape of a magnitude; float32."""
    kept = 1 if input_axis else 0
    others = [axis for axis in range(weight.dim()) if axis != kept]
    return torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)


def decomposed(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """What `weight` gains when weight + delta is brought to the magnitude."""
    changed = weight + delta
    return changed * (magnitude / (weight_norms(changed, input_axis=is_input_axis(magnitude)) + TINY)) - weight


def low_rank_norms(own: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float, *, input_axis: bool) -> Tensor:
    """The lengths of weight + scale * up @ down, flat and in float32, without making that sum; `own` are the weight's squared lengths.

    |w + d|^2 = |w|^2 + 2 w d + |d|^2, where both further terms need products with the small matrices only.
    """
    flat, low, high = weight.flatten(1), down.flatten(1), up.flatten(1)
    if input_axis:
        mixed = ((high.t() @ flat).float() * low.float()).sum(0)
        alone = ((high.t() @ high).float() @ low.float() * low.float()).sum(0)
        mixed, alone = (each.reshape(own.numel(), -1).sum(1) for each in (mixed, alone))
    else:
        mixed = ((flat @ low.t()).float() * high.float()).sum(1)
        alone = (high.float() @ (low @ low.t()).float() * high.float()).sum(1)
    square = own + 2 * scale * mixed + scale * scale * alone
    return square.clamp_min(TINY * TINY).sqrt() + TINY


def init_magnitude(tensors: Mapping[str, nn.Parameter], site: BaseLayer) -> None:
    """A magnitude begins as the weight's own lengths, so that nothing is changed."""
    if MAGNITUDE in tensors:
        magnitude = tensors[MAGNITUDE]
        magnitude.copy_(weight_norms(site.weight, input_axis=is_input_axis(magnitude)))
