"""OFT (Qiu et al. 2023): rotates the outputs of a layer in small blocks, by rotations that start as the identity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward, HasShape, Kind, Shapes, Tensors
from lora_trainer.adapters.layer_plan import LayerPlan

BLOCKS, RESCALE = "oft_blocks", "rescale"


class Oft(Kind):
    """W' = R^T W with R block-diagonal, each block R = (1 + Q) / (1 - Q), Q = B - B^T (Cayley); with `rescaled`, W' = s * R^T W.

    Tensors: oft_blocks B [count, size, size] with count * size = out; rescale s [out, 1(, 1, 1)]. The rank of the plan is the size of a
    block (the divisor of `out` that config.choices.networks.factors finds for it). alpha in a file is the constraint.

    Options: `constraint` (||Q|| is at most constraint * out; 0: no limit), `rescaled`, `module_dropout`. Source: Qiu et al. 2023,
    https://arxiv.org/abs/2306.07280; the layout is LyCORIS' diag-oft.
    """

    name = "oft"

    def rank(self, tensors: Mapping[str, HasShape]) -> int:
        """The size of a block, which is what `rank` sets."""
        return int(tensors[BLOCKS].shape[-1])

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """1: alpha is not a strength here."""
        return 1.0

    def alpha_in_file(self, layer: LayerPlan, tensors: Tensors) -> float:
        """The constraint, per output."""
        return float(self.spec.with_defaults(layer.options)["constraint"])

    def weight_size(self, shapes: Shapes) -> tuple[int, int]:
        """(rows, 0): it rotates rows of any length. (0, 0) where the blocks are not square."""
        blocks = shapes[BLOCKS]
        return (blocks[0] * blocks[1] if len(blocks) == 3 and blocks[1] == blocks[2] else 0), 0

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], base: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """B stays at zero, which is the identity; s is one."""
        if RESCALE in tensors:
            tensors[RESCALE].fill_(1.0)

    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """R^T W - W."""
        rotated = rotate_weight(cayley(tensors[BLOCKS], alpha * weight.shape[0]), weight)
        return (rotated * tensors[RESCALE] if RESCALE in tensors else rotated) - weight

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """Rotates the layer's outputs, which never builds the rotated weight."""

        def rotated(x: Tensor) -> Tensor:
            rotation = cayley(layer.in_float32(BLOCKS), layer.alpha * base.weight.shape[0])
            plain = base.operation(x, base.weight, None)
            output = plain + rotate_outputs(rotation - torch.eye(rotation.shape[-1], device=rotation.device), plain, last=base.is_linear)
            if RESCALE in layer.parameters:
                output = output * base.broadcast_channels(layer.in_float32(RESCALE).flatten()).to(output.dtype)
            output = output if layer.multiplier == 1.0 else torch.lerp(plain, output, layer.multiplier)
            return output if base.bias is None else output + base.broadcast_channels(base.bias)

        return rotated


def cayley(blocks: Tensor, max_norm: float) -> Tensor:
    """R = (1 + Q) / (1 - Q), Q = B - B^T, for B [count, size, size]; float32. ||Q|| over all blocks is at most `max_norm` (0: no limit)."""
    skew = blocks.float() - blocks.float().transpose(1, 2)
    if max_norm > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        skew = skew * torch.clamp(max_norm / norm, max=1.0)
    eye = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve_ex(eye - skew, eye + skew).result  # both commute, so the order is free; 1 - Q is never singular


def rotate_weight(rotation: Tensor, weight: Tensor) -> Tensor:
    """R^T W: the rows of a weight [out, ...] rotated block by block, R [count, size, size]."""
    count, size, _ = rotation.shape
    return torch.bmm(rotation.transpose(1, 2), weight.reshape(count, size, -1)).reshape(weight.shape)


def rotate_outputs(rotation: Tensor, outputs: Tensor, *, last: bool) -> Tensor:
    """Outputs [..., out] (`last`) or [batch, out, ...] of a layer, rotated as `rotate_weight` rotates its weight."""
    count, size, _ = rotation.shape
    rotation = rotation.to(outputs.dtype)
    if last:
        return torch.einsum("tkn,knm->tkm", outputs.reshape(-1, count, size), rotation).reshape(outputs.shape)
    return torch.matmul(rotation.transpose(1, 2), outputs.reshape(len(outputs), count, size, -1)).reshape(outputs.shape)


KIND = Oft()
