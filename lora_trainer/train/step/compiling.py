"""torch.compile, block by block: sixteen equal blocks are compiled once for each size, where the whole U-Net would take very long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lora_trainer.messages import Message, say

BLOCKS = frozenset({"BasicTransformerBlock"})


class CompiledBlocks:
    """Wraps `forward` of the blocks of a module on the instances, from `put_on` to `remove`.

    The first error of the compiler ends it for all blocks: the call is done again without, and `told` says why.
    """

    def __init__(self, backend: Any = "inductor") -> None:
        self.backend = backend
        self.told: list[Message] = []
        self.works = True
        self._wrapped: list[nn.Module] = []

    def put_on(self, root: nn.Module) -> None:
        """Wraps the blocks of a U-Net; nothing when compiling has failed before."""
        if self.works:
            self._wrapped = [module for module in root.modules() if type(module).__name__ in BLOCKS]
        for module in self._wrapped:
            module.forward = self._either(module.forward)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Gives every block its own `forward` back."""
        for module in self._wrapped:
            module.__dict__.pop("forward", None)
        self._wrapped = []

    def _either(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(forward, backend=self.backend)

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.works:
                try:
                    return compiled(*args, **kwargs)
                except (RuntimeError, ImportError, OSError) as error:  # no compiler, or an operation that it does not know
                    if not self.gives_up(error):
                        raise
            return forward(*args, **kwargs)

        return run

    def gives_up(self, error: Exception) -> bool:
        """Whether what failed may be done again without compiled blocks, which it is from now on; backward is compiled when it comes."""
        if not self.works or isinstance(error, torch.cuda.OutOfMemoryError):
            return False
        self.works = False
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self.told.append(say("Blocks are not compiled: {reason}", reason=reason))
        return True
