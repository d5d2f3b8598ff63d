"""Memory that runs out, made at will: at the n-th allocation (benchmarks.memory.Allocations: where more is alive than a card holds)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
