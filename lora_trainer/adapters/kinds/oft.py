"""OFT (Qiu et al. 2023): the outputs of a layer are turned in small blocks, by rotations that begin as none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.kinds.base import Forward, Kind, Layer, Tensors
from lora_trainer.adapters.layer_plan import LayerPlan

BLOCKS, RESCALE = "oft_blocks", "rescale"


class Oft(Kind):
    """Blocks of outputs, each turned by Cayley's rotation of a skew matrix. Alpha is the limit of how far, 0 for none."""

    name = "oft"
    needed = (frozenset({BLOCKS}),)
    known = frozenset({BLOCKS, RESCALE})

    def rank(self, tensors: Tensors) -> int:
        """The side of a block: it is what `rank` asks for."""
        return int(tensors[BLOCKS].shape[-1])

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """1: alpha is no strength here."""
        return 1.0

    def alpha_in_file(self, layer: LayerPlan, tensors: Tensors) -> float:
        """The limit, for each output."""
        return float(self.facts.settings(layer.options)["constraint"])

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], site: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """No rotation; where outputs are rescaled, by one."""
        if RESCALE in tensors:
            tensors[RESCALE].fill_(1.0)

    def weight_delta(self, tensors: Tensors, alpha: float, weight: Tensor) -> Tensor:
        """The turned weight less the weight."""
        turned = turn(rotations(tensors[BLOCKS], alpha * weight.shape[0]), weight)
        return (turned * tensors[RESCALE] if RESCALE in tensors else turned) - weight

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """The layer's own outputs, turned: the turned weight is never made."""

        def turned(x: Tensor) -> Tensor:
            rotation = rotations(layer.exact(BLOCKS), layer.alpha * site.weight.shape[0])
            plain = site.call(x, site.weight, None)
            gained = plain + turn_outputs(rotation - torch.eye(rotation.shape[-1], device=rotation.device), plain, last=site.linear)
            if RESCALE in layer.parameters:
                gained = gained * site.channels_last(layer.exact(RESCALE).flatten()).to(gained.dtype)
            gained = gained if layer.multiplier == 1.0 else torch.lerp(plain, gained, layer.multiplier)
            return gained if site.bias is None else gained + site.channels_last(site.bias)

        return turned


def rotations(blocks: Tensor, limit: float) -> Tensor:
    """[count, side, side]: (1 + Q) / (1 - Q) with Q = B - B^T, of a norm of at most `limit` over all blocks unless that is 0; float32."""
    skew = blocks.float() - blocks.float().transpose(1, 2)
    if limit > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        skew = skew * torch.clamp(limit / norm, max=1.0)
    eye = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve_ex(eye - skew, eye + skew).result  # both commute, so the order is free; 1 - Q is never singular


def turn(rotation: Tensor, weight: Tensor) -> Tensor:
    """A weight [out, ...] whose outputs are turned block by block, R^T W."""
    count, side, _ = rotation.shape
    return torch.bmm(rotation.transpose(1, 2), weight.reshape(count, side, -1)).reshape(weight.shape)


def turn_outputs(rotation: Tensor, values: Tensor, *, last: bool) -> Tensor:
    """Outputs [..., out] (`last`) or [pictures, out, ...] of a layer, turned as `turn` turns its weight."""
    count, side, _ = rotation.shape
    rotation = rotation.to(values.dtype)
    if last:
        return torch.einsum("tkn,knm->tkm", values.reshape(-1, count, side), rotation).reshape(values.shape)
    return torch.matmul(rotation.transpose(1, 2), values.reshape(len(values), count, side, -1)).reshape(values.shape)


KIND = Oft()
