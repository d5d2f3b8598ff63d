"""Optimizers by name, on one flat buffer per learning-rate group where the optimizer works element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.errors import TrainerError
from lora_trainer.registry import Registry

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")


@OPTIMIZERS.add("AdamW", "AdamW", lr_hint=1e-4, elementwise=True, bytes_per_parameter=8)
def adamw(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's AdamW (Loshchilov & Hutter 2019), fused where this torch can."""
    try:
        return torch.optim.AdamW([dict(group) for group in groups], fused=True, **options)  # it writes its options into what it is given
    except (RuntimeError, TypeError):  # torch 2.1 has no fused AdamW on the CPU
        return torch.optim.AdamW(groups, foreach=False, **options)


def try_options(name: str, options: Mapping[str, Any]) -> None:
    """Builds the optimizer on one number. Raises TrainerError when it does not take these options."""
    try:
        OPTIMIZERS[name].make([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-4}], options)
    except (TypeError, ValueError) as error:
        raise TrainerError(
            "{name} does not take these arguments: {reason}.",
            path="optimizer.args",
            name=name,
            reason=str(error),
            fix="Correct or empty the field.",
        ) from error


class FlatOptimizer:
    """An element-wise optimizer over one flat float32 buffer per group; the parameters become views of it.

    `groups` holds (parameters, learning rate) pairs. What a batch calculates with is cut from the buffers by `tensors`, so that
    its gradients come back into them whole: one operation for all, not one or two for each tensor.
    """

    def __init__(self, name: str, groups: Sequence[tuple[Sequence[nn.Parameter], float]], options: Mapping[str, Any]) -> None:
        self.shapes = [[parameter.shape for parameter in parameters] for parameters, _ in groups]
        self.rates = [rate for _, rate in groups]
        self.buffers = [self._flattened(parameters) for parameters, _ in groups]
        made = [{"params": [buffer], "lr": rate} for buffer, rate in zip(self.buffers, self.rates, strict=True)]
        self.inner = OPTIMIZERS[name].make(made, options)

    def tensors(self, dtype: torch.dtype | None = None) -> list[list[Tensor]]:
        """Each group's parameters for one forward and backward, in `dtype` (None: float32); gradients add up in the buffers."""
        made = []
        for buffer, shapes in zip(self.buffers, self.shapes, strict=True):
            pieces = buffer.to(dtype or buffer.dtype).split([shape.numel() for shape in shapes])
            made.append([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)])
        return made

    def gradients(self) -> list[Tensor]:
        """The flat gradients, one per group."""
        return [buffer.grad for buffer in self.buffers if buffer.grad is not None]

    def step(self, factor: float) -> None:
        """One step at `factor` times each group's rate; gradients are dropped after it."""
        for group, rate in zip(self.inner.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.inner.step()
        self.drop()

    def drop(self) -> None:
        """Forgets the gradients."""
        for buffer in self.buffers:
            buffer.grad = None

    @staticmethod
    def _flattened(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
        buffer = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
        start = 0
        for parameter in parameters:
            parameter.data = buffer.data[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        return buffer
