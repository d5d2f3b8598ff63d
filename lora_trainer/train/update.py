"""One optimizer step from the gradient that lies in its buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lora_trainer.optim.optimizers import TrainingOptimizer
    from lora_trainer.train.average import Average


class Updater:
    """Unscales, measures and shortens the gradient, then steps; a gradient that is no number is dropped instead."""

    def __init__(self, optimizer: TrainingOptimizer, scaler: Any, average: Average | None = None) -> None:
        self.optimizer, self.scaler, self.average = optimizer, scaler, average

    def update(self, factor: float, limit: float, steps: int = 1) -> float:
        """The `steps`-th step, at `factor` times each group's rate.

        Returns the gradient's length before it was shortened to `limit` (0: never).
        """
        optimizer, scaler = self.optimizer, self.scaler
        if scaler is not None:
            optimizer.unscale(scaler)
        norm = self._shortened(limit)
        if norm == norm and norm != float("inf"):
            optimizer.step(factor)
        else:
            optimizer.drop()
        if scaler is not None:
            scaler.update()
        if self.average is not None:
            self.average.follow(steps)
        return norm

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with; 0 without a GradScaler."""
        return 0.0 if self.scaler is None else float(self.scaler.get_scale())

    def _shortened(self, limit: float) -> float:
        gradients = self.optimizer.gradients()
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        length = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        norm = float(length)
        if limit and norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return norm
