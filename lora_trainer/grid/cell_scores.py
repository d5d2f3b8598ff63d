"""A cell of a grid, and how it scored."""

from __future__ import annotations

import attrs

OVERTRAINED_RATIO = 1.03
"""A validation loss above the lowest one by this factor has risen."""
Cell = tuple[int, float]
"""(epoch, weight)."""


@attrs.frozen
class Scores:
    """A cell's scores. `fidelity` is the mean distance (lower is better); likeness and keeping are 0 to 1 with standard errors."""

    epoch: int
    weight: float
    fidelity: float
    likeness: float
    likeness_error: float
    keeping: float
    keeping_error: float
    product: float
    shown: bool
    copies: bool

    @property
    def cell(self) -> Cell:
        """(epoch, weight)."""
        return self.epoch, self.weight
