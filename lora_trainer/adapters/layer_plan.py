"""One row of a network's plan: a layer with the kind, rank and alpha of its adapter (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class LayerPlan:
    """One layer: its `name` in a file and `path` in the bundle ("unet.mid_block..."); `options` are the kind's.

    `alpha` is the config's: a rank-stabilised layer saves another one (config.choices.networks.alpha_in_file). `lr_weight` multiplies
    the learning rate of its part.
    """

    part: str
    name: str
    path: str
    kind: str
    rank: int
    alpha: float
    options: Mapping[str, Any] = attrs.field(factory=dict)
    lr_weight: float = 1.0
