"""DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5): W' = m * (W + delta) / ||W + delta||, with a learned magnitude m.

Axis "in": one magnitude for each input channel, `dora_scale` [1, in(, 1, 1)], the norm over all other axes; this is what hosts compute.
Axis "out": one for each output channel, `dora_scale` [out, 1(, 1, 1)].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.config.choices.networks import DORA

MAGNITUDE = DORA
EPS = torch.finfo(torch.float32).eps


def is_input_axis(magnitude: Tensor) -> bool:
    """Whether a `dora_scale` has one value for each input channel."""
    return magnitude.shape[0] == 1 and magnitude.numel() > 1


def weight_norms(weight: Tensor, *, input_axis: bool) -> Tensor:
    """Norms of a weight [out, in(, kh, kw)] for each input or output channel, in the shape of a magnitude; float32."""
    channel_axis = 1 if input_axis else 0
    others = [axis for axis in range(weight.dim()) if axis != channel_axis]
    return torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)


def dora_delta(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """W' - W, for W + delta scaled to the magnitude."""
    changed = weight + delta
    return changed * (magnitude / (weight_norms(changed, input_axis=is_input_axis(magnitude)) + EPS)) - weight


def low_rank_norms(squared_norms: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float, *, input_axis: bool) -> Tensor:
    """Norms of W + scale * up @ down, [channels], float32, without building that sum. `squared_norms`: the squares of W's own, [channels].

    ||W + D||^2 = ||W||^2 + 2 <W, D> + ||D||^2, where the last two terms need products with the small matrices only.
    """
    matrix, low, high = weight.flatten(1), down.flatten(1), up.flatten(1)
    if input_axis:
        cross = ((high.t() @ matrix).float() * low.float()).sum(0)
        delta = ((high.t() @ high).float() @ low.float() * low.float()).sum(0)
        cross, delta = (term.reshape(squared_norms.numel(), -1).sum(1) for term in (cross, delta))
    else:
        cross = ((matrix @ low.t()).float() * high.float()).sum(1)
        delta = (high.float() @ (low @ low.t()).float() * high.float()).sum(1)
    squares = squared_norms + 2 * scale * cross + scale * scale * delta
    return squares.clamp_min(EPS * EPS).sqrt() + EPS


def init_magnitude(tensors: Mapping[str, nn.Parameter], base: BaseLayer) -> None:
    """A magnitude starts as the weight's own norms, so that nothing changes."""
    if MAGNITUDE in tensors:
        magnitude = tensors[MAGNITUDE]
        magnitude.copy_(weight_norms(base.weight, input_axis=is_input_axis(magnitude)))
