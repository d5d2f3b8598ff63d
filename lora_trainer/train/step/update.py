"""One optimizer step from the gradient that lies in its buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lora_trainer.optim.optimizers import TrainingOptimizer
    from lora_trainer.train.outputs.ema import Average


class Updater:
    """Unscales, measures and shortens the gradient, then steps; a gradient that is no number is dropped instead.

    `after` is done after each step that was taken, before the average follows.
    """

    def __init__(
        self, optimizer: TrainingOptimizer, scaler: Any, average: Average | None = None, after: Callable[[], object] | None = None
    ) -> None:
        self.optimizer, self.scaler, self.average, self.after = optimizer, scaler, average, after
        self.begun = False
        """Whether a step has begun and not ended: it cannot be done again."""
        self._stepped = False

    def update(self, factor: float, limit: float, loss: Tensor, steps: int = 1) -> tuple[float, float]:
        """The `steps`-th step, at `factor` times each group's rate.

        Returns the gradient's length before it was shortened to `limit` (0: never), and the loss as a number. Both are read at once:
        it is the only time in a step that a GPU is waited for.
        """
        optimizer, scaler = self.optimizer, self.scaler
        if scaler is not None:
            optimizer.unscale(scaler)
        norm, read = self._shortened(limit, loss)
        if norm == norm and norm != float("inf"):
            self._step(factor)
            if self.after is not None:
                self.after()
        else:
            optimizer.drop()
        if scaler is not None:
            scaler.update()
        if self.average is not None:
            self.average.follow(steps)
        self.begun = False
        return norm, read

    def _step(self, factor: float) -> None:
        """The first step makes the optimizer's state, for which there may be no room: then all is as before it."""
        if self._stepped:
            self.begun = True
            self.optimizer.step(factor)
            return
        values, kept = [group.buffer.detach().clone() for group in self.optimizer.groups], self.optimizer.state_dict()
        try:
            self.optimizer.step(factor)
        except (RuntimeError, MemoryError):
            if not kept[0]:  # of a run that begins: what the step has made must not stay
                self.optimizer.inner.state.clear()
            self.optimizer.load_state_dict(*kept)
            with torch.no_grad():
                for group, before in zip(self.optimizer.groups, values, strict=True):
                    group.buffer.copy_(before)
            raise
        self.begun = self._stepped = True

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with; 0 without a GradScaler."""
        return 0.0 if self.scaler is None else float(self.scaler.get_scale())

    def _shortened(self, limit: float, loss: Tensor) -> tuple[float, float]:
        gradients = self.optimizer.gradients()
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        length = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        norm, read = torch.stack([length, loss.to(length.dtype)]).tolist()
        if limit and norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return norm, read
