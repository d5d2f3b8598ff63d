"""One optimizer step from the gradient that lies in its buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lora_trainer.optim.optimizers import TrainingOptimizer


class Updater:
    """Unscales, measures and shortens the gradient, then steps; a gradient that is no number is dropped instead."""

    def __init__(self, optimizer: TrainingOptimizer, scaler: Any) -> None:
        self.optimizer, self.scaler = optimizer, scaler

    def update(self, factor: float, limit: float) -> float:
        """Steps at `factor` times each group's rate; returns the gradient's length before it was shortened to `limit` (0: never)."""
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
        return norm

    def _shortened(self, limit: float) -> float:
        gradients = self.optimizer.gradients()
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        length = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        norm = float(length)
        if limit and norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return norm
