"""DyLoRA (Valipour et al. 2022): a LoRA of which each step trains one block of ranks, with all lower ranks in place.

The scale is that of the whole rank for every block: a host multiplies a smaller slice of the file by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward
from lora_trainer.adapters.kinds.lora import Lora, add_up_projection

BLOCK = "block_size"


class Dylora(Lora):
    """W' = W + alpha / rank * B[:, :e] A[:e], with a block of ranks s..e-1 drawn for each layer and batch; only that block gets a gradient.

    Tensors and file as LoRA's: lora_down.weight A [rank, in(, kh, kw)], lora_up.weight B [out, rank(, 1, 1)].

    Options: `block_size`, ranks per block. Source: Valipour et al. 2022, https://arxiv.org/abs/2210.07558
    """

    name = "dylora"

    def is_random(self, options: Mapping[str, Any]) -> bool:
        """Always: the block is drawn."""
        return True

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """The product of the drawn block and those below it; outside of training that of all ranks."""
        full_rank = super().forward(base, layer)

        def sliced(x: Tensor) -> Tensor:
            if layer.rng is None:
                return full_rank(x)
            size, (down, up) = layer.options[BLOCK], layer.compute_tensors
            start = size * layer.rng.randint(-(-down.shape[0] // size), layer.plan.name, "block")
            down = torch.cat((down[:start].detach(), down[start : start + size]))
            up = torch.cat((up[:, :start].detach(), up[:, start : start + size]), 1)
            return add_up_projection(base, x, base.bias, base.operation(x, down, None), up, layer.strength)

        return sliced


KIND = Dylora()
