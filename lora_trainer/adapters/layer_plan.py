"""One row of what is trained: a layer with the kind, rank and alpha of what is put on it (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class LayerPlan:
    """One layer: `name` in a file, `path` in the bundle ("unet.mid_block..."); `options` are the kind's.

    `alpha` is the user's: a rank-stabilised layer writes another one into its file. `rate` is its share of the part's learning rate.
    """

    part: str
    name: str
    path: str
    kind: str
    rank: int
    alpha: float
    options: Mapping[str, Any] = attrs.field(factory=dict)
    rate: float = 1.0
