"""Our own gradient checkpointing: blocks are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

BLOCKS = frozenset({"ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer"})


class Checkpointing:
    """Wraps `forward` of the blocks of some modules on the instances; `remove` gives them back."""

    def __init__(self, *roots: nn.Module) -> None:
        self._wrapped = [module for root in roots for module in root.modules() if type(module).__name__ in BLOCKS]
        for module in self._wrapped:
            module.forward = _recomputed(module.forward)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Gives every block its own `forward` back."""
        for module in self._wrapped:
            module.__dict__.pop("forward", None)
        self._wrapped = []


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
