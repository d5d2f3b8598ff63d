"""Optimizers by name, on one flat buffer per learning-rate group where the optimizer works element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, groupby
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


class FlatGroup:
    """The parameters of one learning rate in one flat float32 buffer, equal shapes side by side; the parameters become views of it."""

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float) -> None:
        self.rate = rate
        order = sorted(range(len(parameters)), key=lambda number: tuple(parameters[number].shape))
        self._blocks = [(len(list(same)), shape) for shape, same in groupby(parameters[number].shape for number in order)]
        self._places = sorted(range(len(order)), key=order.__getitem__)
        self.buffer = nn.Parameter(torch.cat([parameters[number].detach().reshape(-1) for number in order]))
        with torch.no_grad():
            for parameter, view in zip(parameters, self.tensors(self.buffer.dtype), strict=True):
                parameter.data = view

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """The parameters in their own order, cut from the buffer in so few operations that each costs next to nothing."""
        blocks = self.buffer.to(dtype).split([count * shape.numel() for count, shape in self._blocks])
        cut = [block.view(count, *shape).unbind() for block, (count, shape) in zip(blocks, self._blocks, strict=True)]
        tensors = list(chain.from_iterable(cut))
        return [tensors[place] for place in self._places]


class FlatOptimizer:
    """An optimizer that works element by element, over one flat buffer for each of the (parameters, learning rate) pairs.

    What a batch calculates with comes from `tensors`, so that its gradients arrive in the buffers whole: a handful of operations
    instead of several for each of hundreds of matrices.
    """

    def __init__(self, name: str, groups: Sequence[tuple[Sequence[nn.Parameter], float]], options: Mapping[str, Any]) -> None:
        self.groups = [FlatGroup(parameters, rate) for parameters, rate in groups]
        made = [{"params": [group.buffer], "lr": group.rate} for group in self.groups]
        self.inner = OPTIMIZERS[name].make(made, options)

    def tensors(self, dtype: torch.dtype | None = None) -> list[list[Tensor]]:
        """Each group's parameters for one forward and backward, in `dtype` (None: float32); their gradients add up in the buffers."""
        return [group.tensors(dtype or group.buffer.dtype) for group in self.groups]

    def gradients(self) -> list[Tensor]:
        """The flat gradients, one per group."""
        return [group.buffer.grad for group in self.groups if group.buffer.grad is not None]

    def step(self, factor: float) -> None:
        """One step at `factor` times each group's rate; gradients are dropped after it."""
        for made, group in zip(self.inner.param_groups, self.groups, strict=True):
            made["lr"] = group.rate * factor
        self.inner.step()
        self.drop()

    def drop(self) -> None:
        """Forgets the gradients."""
        for group in self.groups:
            group.buffer.grad = None
