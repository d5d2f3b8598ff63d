"""Exponential moving average (EMA) of a network's weights, for saving, previews and validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lora_trainer.optim.optimizers import TrainingOptimizer


class EmaWeights:
    """shadow <- d * shadow + (1 - d) * weights after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps.

    The warm-up makes a short run forget the initial zeros too (Polyak & Juditsky 1992; the warm-up is that of
    TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, optimizer: TrainingOptimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay
        self.shadow = [group.buffer.detach().clone() for group in optimizer.groups]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Updates the average after `steps` optimizer steps (1 is the first)."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for shadow, group in zip(self.shadow, self.optimizer.groups, strict=True):
            shadow.lerp_(group.buffer.detach(), 1.0 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again, bit for bit."""
        weights = [group.buffer.detach().clone() for group in self.optimizer.groups]
        self._copy_in(self.shadow)
        try:
            yield
        finally:
            self._copy_in(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The average of each group's flat buffer, by group name."""
        return {group.name: shadow for group, shadow in zip(self.optimizer.groups, self.shadow, strict=True)}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads a `state_dict`; a group missing from it starts from its current weights."""
        for shadow, group in zip(self.shadow, self.optimizer.groups, strict=True):
            shadow.copy_(tensors.get(group.name, group.buffer.detach()))

    def move(self, device: torch.device) -> None:
        """Moves the average to `device`, as a fresh copy."""
        self.shadow = [shadow.to(device, copy=True) for shadow in self.shadow]

    @torch.no_grad()
    def _copy_in(self, values: list[Tensor]) -> None:
        for group, value in zip(self.optimizer.groups, values, strict=True):
            group.buffer.copy_(value)


@contextmanager
def ema_weights(optimizer: TrainingOptimizer, ema: EmaWeights | None) -> Iterator[None]:
    """Inside, the network has the weights to save and evaluate: the EMA, or the optimizer's own average, or else the trained ones."""
    if ema is not None:
        with ema.swapped_in():
            yield
        return
    with optimizer.averaged_weights():
        yield


def weights_metadata(optimizer: TrainingOptimizer, ema: EmaWeights | None) -> dict[str, str]:
    """Header fields that name the kind of average; none for plain weights."""
    if ema is not None:
        return {"ss_weights": f"average, decay {ema.decay}"}
    return {"ss_weights": "average of the optimizer"} if callable(getattr(optimizer.inner, "eval", None)) else {}
