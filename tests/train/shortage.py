"""Memory that runs out, made at will: at the n-th allocation, or whenever more is alive than a card would hold."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.step import VIEWS


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


class Card(TorchDispatchMode):
    """Follows every storage that an operation makes from here on; more than `room` bytes at a time there are not."""

    def __init__(self, room: float = float("inf")) -> None:
        super().__init__()
        self.room, self.alive, self.peak = room, 0, 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        if not operation._schema.is_mutable:
            tree_map(self._seen, made)
        return made

    def _seen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self._take(storage)
        return value

    def _take(self, storage: Any) -> None:
        size = storage.nbytes()
        if self.alive + size > self.room:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size}.")
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.alive -= size
