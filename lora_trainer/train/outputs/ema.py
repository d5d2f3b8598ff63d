"""The running average of a network's weights (EMA), and the weights that are shown: saved, drawn with, validated with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lora_trainer.optim.optimizers import TrainingOptimizer


class EmaWeights:
    """kept <- d * kept + (1 - d) * weights after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps.

    So the zeros that a network begins with have left the average of a short run too (Polyak & Juditsky 1992; the warm-up is that of
    TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, optimizer: TrainingOptimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay
        self.kept = [group.buffer.detach().clone() for group in optimizer.groups]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """After `steps` steps (1 is the first)."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for kept, group in zip(self.kept, self.optimizer.groups, strict=True):
            kept.lerp_(group.buffer.detach(), 1.0 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The weights are the average inside, and after it what they were, bit for bit."""
        weights = [group.buffer.detach().clone() for group in self.optimizer.groups]
        self._put(self.kept)
        try:
            yield
        finally:
            self._put(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """By group name."""
        return {group.name: kept for group, kept in zip(self.optimizer.groups, self.kept, strict=True)}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave; where it has none, the average begins with the weights of now."""
        for kept, group in zip(self.kept, self.optimizer.groups, strict=True):
            kept.copy_(tensors.get(group.name, group.buffer.detach()))

    def move(self, device: torch.device) -> None:
        """A fresh copy on `device`."""
        self.kept = [kept.to(device, copy=True) for kept in self.kept]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for group, value in zip(self.optimizer.groups, values, strict=True):
            group.buffer.copy_(value)


@contextmanager
def ema_weights(optimizer: TrainingOptimizer, average: EmaWeights | None) -> Iterator[None]:
    """Inside, the network's weights are those that are shown to somebody."""
    if average is not None:
        with average.swapped_in():
            yield
        return
    with optimizer.averaged():
        yield


def weights_word(optimizer: TrainingOptimizer, average: EmaWeights | None) -> dict[str, str]:
    """What a file's header says of which weights it holds; nothing where they are those of the last step."""
    if average is not None:
        return {"ss_weights": f"average, decay {average.decay}"}
    return {"ss_weights": "average of the optimizer"} if callable(getattr(optimizer.inner, "eval", None)) else {}
