"""Random draws of a network in training, as a pure function of seed, step, batch and layer, so that a resumed run draws the same.

torch's global generators are not touched. A block that is recomputed in the backward pass draws the same again.
"""

from __future__ import annotations

import hashlib

import attrs
import torch
from torch import Tensor


@attrs.frozen
class LayerRng:
    """The draws of one micro-batch, separate for each layer."""

    seed: int
    step: int
    micro_batch: int = 0

    def generator(self, name: str, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one layer, by name, and one purpose."""
        text = f"{self.seed}:{self.step}:{self.micro_batch}:{name}:{purpose}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
        return torch.Generator(device).manual_seed(seed)

    def uniform(self, name: str, purpose: str) -> float:
        """A float in [0, 1)."""
        return float(torch.rand((), generator=self.generator(name, purpose)))

    def randint(self, limit: int, name: str, purpose: str) -> int:
        """An integer in 0 .. limit - 1."""
        return int(torch.randint(limit, (), generator=self.generator(name, purpose)))

    def dropout_mask(self, like: Tensor, p: float, name: str, purpose: str) -> Tensor:
        """A mask in the shape of `like`: 0 with probability `p`, else 1 / (1 - p), which keeps the mean."""
        drawn = torch.rand(like.shape, generator=self.generator(name, purpose, like.device), device=like.device)
        return (drawn >= p).to(like.dtype) / (1.0 - p)
