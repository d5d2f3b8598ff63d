"""Which moment of a run validates best, and when waiting for a better one has lasted long enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs


@attrs.define
class EarlyStop:
    """Follows the validation loss. `patience` validations in a row without one that is lower by more than `min_delta` end the run
    (0: never).

    `first` is the loss before training, `lowest` the lowest since, at `step` of `epoch`; `counted` is the last that counted as better,
    `waited` how many came after it. A loss that is no number is no better one.
    """

    patience: int = 0
    min_delta: float = 0.0
    first: float | None = None
    lowest: float | None = None
    step: int = 0
    epoch: int = 0
    counted: float | None = None
    waited: int = 0

    def after(self, step: int, epoch: int, loss: float) -> bool:
        """Takes in a validation; whether it is the lowest of all since training began."""
        known = math.isfinite(loss)
        better = known and (self.counted is None or loss < self.counted - self.min_delta)
        if step == 0:
            self.first = self.counted = loss if known else None
            return False
        self.waited = 0 if better else self.waited + 1
        self.counted = loss if better else self.counted
        if not known or (self.lowest is not None and loss >= self.lowest):
            return False
        self.lowest, self.step, self.epoch = loss, step, epoch
        return True

    @property
    def ended(self) -> bool:
        """Whether the run should end here."""
        return bool(self.patience) and self.waited >= self.patience

    @property
    def in_vain(self) -> bool:
        """Whether no moment of the training validates better than the model before it."""
        return self.first is not None and self.lowest is not None and self.lowest >= self.first

    def to_plain(self) -> dict[str, Any]:
        """What it has seen, as JSON can hold it; not what it is told to do."""
        return {name: getattr(self, name) for name in _SEEN}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Takes back what `to_plain` gave."""
        for name in _SEEN:
            setattr(self, name, plain[name])


_SEEN = ("first", "lowest", "step", "epoch", "counted", "waited")
