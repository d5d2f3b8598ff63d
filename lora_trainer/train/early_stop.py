"""Early stopping: the best validation loss of a run, and whether to wait any longer for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs


@attrs.define
class EarlyStop:
    """Follows the validation loss. The run ends after `patience` validations in a row (0: never) without an improvement of more than
    `min_delta`.

    `initial_loss` is the loss before training, `best_loss` the lowest since, at `best_step` of `best_epoch`; `reference_loss` is the last
    that counted as an improvement, `wait_count` the validations since then. A loss that is not finite is never an improvement.
    """

    patience: int = 0
    min_delta: float = 0.0
    initial_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    reference_loss: float | None = None
    wait_count: int = 0

    def update(self, step: int, epoch: int, loss: float) -> bool:
        """Takes the loss of a validation; returns whether it is the lowest since training began."""
        finite = math.isfinite(loss)
        improved = finite and (self.reference_loss is None or loss < self.reference_loss - self.min_delta)
        if step == 0:
            self.initial_loss = self.reference_loss = loss if finite else None
            return False
        self.wait_count = 0 if improved else self.wait_count + 1
        self.reference_loss = loss if improved else self.reference_loss
        if not finite or (self.best_loss is not None and loss >= self.best_loss):
            return False
        self.best_loss, self.best_step, self.best_epoch = loss, step, epoch
        return True

    @property
    def should_stop(self) -> bool:
        """Whether the run should end here."""
        return bool(self.patience) and self.wait_count >= self.patience

    @property
    def never_improved(self) -> bool:
        """Whether no validation was better than the one before training."""
        return self.initial_loss is not None and self.best_loss is not None and self.best_loss >= self.initial_loss

    def to_plain(self) -> dict[str, Any]:
        """Plain values for state.json; the options are not among them."""
        return {key: getattr(self, name) for key, name in _FIELDS.items()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Takes the values of `to_plain`."""
        for key, name in _FIELDS.items():
            setattr(self, name, plain[key])


_FIELDS = {
    "first": "initial_loss",
    "lowest": "best_loss",
    "step": "best_step",
    "epoch": "best_epoch",
    "counted": "reference_loss",
    "waited": "wait_count",
}
"""Key in state.json -> field."""
