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
    """A stand-in for a GPU, on the CPU: it knows which modules a run has on it. What was read from a file is not there at first.

    `install` makes the trainer move modules to it and off it as on CUDA, and nothing really moves. `log`: (module, on or off), by class
    name. `room`: bytes of weights that it holds; `most`: the most that it held.
    """

    def __init__(self, room: float = float("inf")) -> None:
        self.room, self.most = room, 0.0
        self.log: list[tuple[str, str]] = []
        self._on: dict[int, nn.Module] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Trainer, "can_offload", property(lambda trainer: trainer.source is not None))
        patch.setattr(placement, "is_on", lambda module, device: id(module) in self._on)
        patch.setattr(placement, "move", self._move)
        patch.setattr(placement, "free_bytes", lambda device: self.room - self.held)

    @property
    def held(self) -> int:
        """Bytes of the weights that are on it."""
        return placement.weight_bytes(self._on.values())

    def has(self, name: str) -> bool:
        """Whether a module of this class is on it."""
        return any(type(module).__name__ == name for module in self._on.values())

    def _move(self, module: nn.Module, device: torch.device) -> None:
        leaves = id(module) in self._on  # on a CPU alone both ends have the same name: a module that is asked to move changes sides
        self.log.append((type(module).__name__, "off" if leaves else "on"))
        if leaves:
            del self._on[id(module)]
        else:
            self._on[id(module)] = module
        self.most = max(self.most, self.held)
