"""bfloat16 weights with stochastic rounding, for training whole models; not used by a run yet.

An update below half of bfloat16's relative precision (2^-8) would always be rounded away. Rounding up with a probability equal to the
dropped fraction follows the sum of all updates on average (Zamirai et al. 2020, section 4, https://arxiv.org/abs/2010.06192).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def stochastic_round(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """float32 -> bfloat16 of the same shape, rounded up or down at random so that the mean is `values`. NaN and infinity stay."""
    bits = values.detach().float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=values.device)
    rounded = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values.float()).to(torch.bfloat16)


class HalfWeights:
    """bfloat16 parameters that an optimizer steps in float32.

    `open` gives float32 copies to step, `close` rounds them back. The rounding depends on (seed, step, index of the parameter) only, so
    that a repeated step gives the same bits. Between steps only the bfloat16 values exist. Raises TypeError for other dtypes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], seed: int = 0) -> None:
        self.parameters, self.seed = list(parameters), seed
        other_dtypes = [parameter.dtype for parameter in self.parameters if parameter.dtype is not torch.bfloat16]
        if other_dtypes:
            raise TypeError(f"parameters must be bfloat16, one is {other_dtypes[0]}")

    def open(self) -> list[Tensor]:
        """float32 copies with their gradients, in the parameters' order."""
        copies = []
        for parameter in self.parameters:
            values = parameter.detach().float()
            values.grad = None if parameter.grad is None else parameter.grad.float()
            copies.append(values)
        return copies

    @torch.no_grad()
    def close(self, stepped: Sequence[Tensor], step: int) -> None:
        """Rounds the stepped copies of `open` into the parameters."""
        for index, (parameter, values) in enumerate(zip(self.parameters, stepped, strict=True)):
            generator = torch.Generator(device=values.device).manual_seed((self.seed << 40) ^ (step << 16) ^ index)
            parameter.copy_(stochastic_round(values, generator))
