"""Memory that runs out, made at will: at the n-th allocation (benchmarks.memory.Allocations: where more is alive than a card holds)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step import VIEWS
from lora_trainer.train.memory import placement
from lora_trainer.train.trainer import Trainer


class Failing(TorchDispatchMode):
    """Counts what torch's operations allocate in this thread; the `fails`-th time there is no memory."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.count, self.fails, self.failed = 0, fails, ""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name not in VIEWS and not operation._schema.is_mutable:
            self.count += 1
            if self.count == self.fails:
                self.failed = name
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nGPU 0 has a total capacity of nothing.")
        return operation(*args, **(kwargs or {}))


class Card:
    """A stand-in for a GPU, on the CPU: it knows where the modules of the runs are, and what works at a time when which of them are there.

    `install` makes the trainer move modules to it and off it as on CUDA, and nothing really moves. `log`: (module, whether it came or
    left), by class name.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self._off: dict[int, nn.Module] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Trainer, "can_offload", property(lambda trainer: True))
        patch.setattr(placement, "is_on", lambda module, device: self.holds(module))
        patch.setattr(placement, "move", self._move)

    def holds(self, module: nn.Module) -> bool:
        return id(module) not in self._off

    def leave(self, module: nn.Module) -> None:
        """Begins outside."""
        self._off[id(module)] = module

    def _move(self, module: nn.Module, device: torch.device) -> None:
        leaves = self.holds(module)  # on a CPU alone both ends have the same name: a module that is asked to move changes sides
        self.log.append((type(module).__name__, "off" if leaves else "on"))
        if leaves:
            self._off[id(module)] = module
        else:
            del self._off[id(module)]
