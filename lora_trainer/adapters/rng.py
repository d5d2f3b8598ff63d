"""What is drawn at random while a network learns: a pure function of seed, step, batch and layer, so that a resumed run draws the same.

Nothing touches torch's own generators. A block that is computed again in the backward pass draws the same once more.
"""

from __future__ import annotations

import hashlib

import attrs
import torch
from torch import Tensor


@attrs.frozen
class LayerRng:
    """The draws of one batch; each layer asks for its own by name."""

    seed: int
    step: int
    micro_batch: int = 0

    def generator(self, name: str, what: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose of one layer."""
        text = f"{self.seed}:{self.step}:{self.micro_batch}:{name}:{what}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
        return torch.Generator(device).manual_seed(number)

    def uniform(self, name: str, what: str) -> float:
        """One number in [0, 1)."""
        return float(torch.rand((), generator=self.generator(name, what)))

    def randint(self, limit: int, name: str, what: str) -> int:
        """One whole number of 0 .. limit - 1."""
        return int(torch.randint(limit, (), generator=self.generator(name, what)))

    def dropout_mask(self, like: Tensor, share: float, name: str, what: str) -> Tensor:
        """A mask in the shape of `like`: 0 with probability `share`, else 1 / (1 - share), so that the mean stays."""
        drawn = torch.rand(like.shape, generator=self.generator(name, what, like.device), device=like.device)
        return (drawn >= share).to(like.dtype) / (1.0 - share)
