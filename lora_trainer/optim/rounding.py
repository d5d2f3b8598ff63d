"""Weights in bfloat16 that still learn: what is lost by rounding down in one step comes back by rounding up in another.

A step that is smaller than half of what bfloat16 can tell apart (a 256th) would always be rounded away. Rounded up with the
probability of what stands behind the last bit, weights follow the sum of all steps on average (Zamirai et al. 2020, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def rounded(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """float32 -> bfloat16 of the same shape; up or down by chance so that the mean is `values`. What is no number stays none."""
    bits = values.detach().float().contiguous().view(torch.int32)
    chance = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=values.device)
    up = ((bits + chance) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(values), up, values.float()).to(torch.bfloat16)


class HalfWeights:
    """bfloat16 parameters that an optimizer steps as float32 numbers.

    `open` gives the optimizer float32 numbers to step, `close` rounds them back, by chance that depends on (seed, step, number of the
    parameter) only: a step that is done again gives the same bits. Between the two steps only the bfloat16 numbers exist.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], seed: int = 0) -> None:
        self.parameters, self.seed = list(parameters), seed
        wrong = [parameter.dtype for parameter in self.parameters if parameter.dtype is not torch.bfloat16]
        if wrong:
            raise TypeError(f"parameters are to be bfloat16, one is {wrong[0]}")

    def open(self) -> list[Tensor]:
        """float32 copies with their gradients, in the parameters' order."""
        opened = []
        for parameter in self.parameters:
            number = parameter.detach().float()
            number.grad = None if parameter.grad is None else parameter.grad.float()
            opened.append(number)
        return opened

    @torch.no_grad()
    def close(self, stepped: Sequence[Tensor], step: int) -> None:
        """Rounds what the optimizer has made of `open`'s numbers into the parameters."""
        for number, (parameter, values) in enumerate(zip(self.parameters, stepped, strict=True)):
            generator = torch.Generator(device=values.device).manual_seed((self.seed << 40) ^ (step << 16) ^ number)
            parameter.copy_(rounded(values, generator))
