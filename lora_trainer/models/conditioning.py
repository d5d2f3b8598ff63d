"""What a U-Net is conditioned on, besides the timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Conditioning:
    """`states` [n, tokens, width] of the text encoders. Only SDXL has `pooled` [n, width].

    `sizes` [n, 6] or None, in pixels: original height and width, crop top and left, target height and width (SDXL's time ids).
    """

    states: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Sequence[int] | slice | Tensor) -> Conditioning:
        """Some of the rows; a single index is not allowed, so that the first dimension stays."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Applies a function to every tensor."""
        return Conditioning(*(None if tensor is None else change(tensor) for tensor in (self.states, self.pooled, self.sizes)))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Conditioning:
        """Moved to another device."""
        return self.map(lambda tensor: tensor.to(device))

    def cpu(self) -> Conditioning:
        """Moved to the CPU."""
        return self.to("cpu")

    def clone(self) -> Conditioning:
        """A deep copy."""
        return self.map(Tensor.clone)

    def expand(self, count: int) -> Conditioning:
        """A single row expanded to `count` rows, without a copy."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def with_sizes(self, sizes: Tensor) -> Conditioning:
        """The same conditioning with these sizes [n, 6]."""
        return attrs.evolve(self, sizes=sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that are not None."""
        return tuple(tensor for tensor in (self.states, self.pooled, self.sizes) if tensor is not None)

    def equals(self, other: Conditioning) -> bool:
        """Whether all tensors are equal, bit for bit."""
        own, others = self.tensors(), other.tensors()
        return len(own) == len(others) and all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def concat(parts: Sequence[Conditioning]) -> Conditioning:
    """Concatenates conditionings along the batch."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.states, part.pooled, part.sizes) for part in parts), strict=True)
    return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
