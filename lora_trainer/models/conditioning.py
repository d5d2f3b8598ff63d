"""What a U-Net is told besides the noisy picture and its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Conditioning:
    """`states` [n, tokens, width]: the text word by word. Only SDXL has `pooled` [n, width], the text as a whole.

    `sizes` [n, 6], where they are known: height and width of the original picture, top and left of the crop, height and width of the
    target, all in pixels.
    """

    states: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Sequence[int] | slice | Tensor) -> Conditioning:
        """Some of the texts; a single number is refused, so that the first dimension stays."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Every tensor changed in the same way."""
        return Conditioning(*(None if tensor is None else change(tensor) for tensor in (self.states, self.pooled, self.sizes)))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Conditioning:
        """On another device."""
        return self.map(lambda tensor: tensor.to(device))

    def cpu(self) -> Conditioning:
        """In ordinary memory."""
        return self.to("cpu")

    def clone(self) -> Conditioning:
        """A copy that shares nothing."""
        return self.map(Tensor.clone)

    def repeated(self, count: int) -> Conditioning:
        """A single text `count` times, without a copy."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def with_sizes(self, sizes: Tensor) -> Conditioning:
        """The same texts for pictures of these sizes [n, 6]."""
        return attrs.evolve(self, sizes=sizes)

    @property
    def nbytes(self) -> int:
        """Memory that all tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there."""
        return tuple(tensor for tensor in (self.states, self.pooled, self.sizes) if tensor is not None)

    def equals(self, other: Conditioning) -> bool:
        """Whether every bit is the same."""
        own, others = self.tensors(), other.tensors()
        return len(own) == len(others) and all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def together(parts: Sequence[Conditioning]) -> Conditioning:
    """Several as one, behind each other."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.states, part.pooled, part.sizes) for part in parts), strict=True)
    return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
