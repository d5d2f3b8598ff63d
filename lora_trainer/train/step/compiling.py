"""torch.compile block by block: sixteen equal blocks are compiled once for each size; the whole U-Net would take very long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.messages import Message, say

BLOCKS = frozenset({"BasicTransformerBlock"})


class CompiledBlocks:
    """Wraps `forward` of a module's blocks on the instances, from `compile_blocks` to `remove`.

    After the compiler's first error all blocks run eagerly: the call is repeated without it, and `messages` says why.
    """

    def __init__(self, backend: Any = "inductor") -> None:
        self.backend = backend
        self.messages: list[Message] = []
        self.is_enabled = True
        self._wrapped: list[nn.Module] = []

    def compile_blocks(self, root: nn.Module) -> None:
        """Wraps the blocks of a U-Net; does nothing after compiling has failed."""
        if self.is_enabled:
            self._wrapped = [module for module in root.modules() if type(module).__name__ in BLOCKS]
        for module in self._wrapped:
            module.forward = self._with_fallback(module.forward)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Gives every block its own `forward` back."""
        for module in self._wrapped:
            module.__dict__.pop("forward", None)
        self._wrapped = []

    def _with_fallback(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] | None = None

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal compiled
            if self.is_enabled:
                try:
                    if compiled is None:  # raises where torch cannot compile at all (Windows before torch 2.4, a newer Python)
                        compiled = torch.compile(forward, backend=self.backend)
                    return compiled(*args, **kwargs)
                except (RuntimeError, ImportError, OSError) as error:  # no compiler, or an unsupported operation
                    if not self.fall_back(error):
                        raise
            return forward(*args, **kwargs)

        return run

    def fall_back(self, error: Exception) -> bool:
        """Whether a failed step may be repeated with eager blocks; they stay eager then. Backward is compiled at its first call."""
        if not self.is_enabled or is_out_of_memory(error):
            return False
        self.is_enabled = False
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self.messages.append(say("Blocks are not compiled: {reason}", reason=reason))
        return True
