"""DyLoRA (Valipour et al. 2022): a LoRA of which each step trains one slice, with all slices before it in place.

The scale is that of the whole rank for every slice: it is what a host multiplies a smaller slice of the file with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.kinds.base import Forward, Layer
from lora_trainer.adapters.kinds.lora import Lora, with_added

BLOCK = "block_size"


class Dylora(Lora):
    """Saved as an ordinary LoRA; a block of ranks is drawn for each layer and batch, and only that block learns."""

    name = "dylora"
    needed = ()

    def is_random(self, options: Mapping[str, Any]) -> bool:
        """Its block, always."""
        return True

    def forward(self, site: BaseLayer, layer: Layer) -> Forward:
        """The product of the slice that was drawn; outside of training that of the whole."""
        whole = super().forward(site, layer)

        def sliced(x: Tensor) -> Tensor:
            if layer.rng is None:
                return whole(x)
            size, (down, up) = layer.options[BLOCK], layer.used
            start = size * layer.rng.randint(-(-down.shape[0] // size), layer.plan.name, "block")
            down = torch.cat((down[:start].detach(), down[start : start + size]))
            up = torch.cat((up[:, :start].detach(), up[:, start : start + size]), 1)
            return with_added(site, x, site.bias, site.call(x, down, None), up, layer.strength)

        return sliced


KIND = Dylora()
