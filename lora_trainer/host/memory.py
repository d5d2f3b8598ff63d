"""A device's memory, and freeing the cached part of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lora_trainer.host import devices

if TYPE_CHECKING:
    import torch

MB = 20
LIMIT_SPARE = 256 * 2**20


def device_memory(device: torch.device) -> dict[str, Any]:
    """{"device", "total_mb", "free_mb", "host_mb"} of the GPU, or of main memory for the CPU; 0 where it is not known.

    `host_mb` is the part that this process uses. Of a GPU also its "precision": what "auto" computes in.
    """
    import psutil

    memory = psutil.virtual_memory()
    if device.type == "cpu":
        used = psutil.Process().memory_info().rss
        return {"device": "CPU", "total_mb": memory.total >> MB, "free_mb": memory.available >> MB, "host_mb": used >> MB}
    name, total, free, used = _READERS.get(device.type, _unknown)(device)
    if device.type == "mps":  # shared with main memory
        free = min(free, memory.available)
    memory_report = {"device": name, "total_mb": total >> MB, "free_mb": free >> MB, "host_mb": used >> MB}
    return memory_report | {"precision": devices.auto_precision(device)}


def empty_cache(device: torch.device) -> None:
    """Returns cached memory to the driver."""
    import torch

    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes allocated on the device so far (on MPS: bytes allocated now); None where it is not known."""
    import torch

    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).max_memory_allocated(device))
    return None


def reset_peak_memory(device: torch.device) -> None:
    """Begins `peak_memory` anew: what the process did before is not the run's."""
    import torch

    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


class MemoryLimit:
    """Keeps this process from taking more of an NVIDIA card than is free, on Windows.

    There the driver moves what is too much to main memory without an error, and steps take ten times as long. Elsewhere it does nothing.

    Inside a `with` block the limit is set; `lift` ends it for a while, `set` takes what is free then. Afterwards it is as it was before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if sys.platform == "win32" and device.type == "cuda" else None
        self._before: float | None = None

    def __enter__(self) -> MemoryLimit:
        self.set()
        return self

    def __exit__(self, *_: object) -> None:
        self.lift()

    def set(self) -> None:
        """Limits the process to what it has and what is free now, less LIMIT_SPARE for what libraries take past torch's allocator."""
        if self._device is None or self._before is not None:
            return
        import torch

        read = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # since torch 2.6
        self._before = 1.0 if read is None else float(read(self._index()))
        free, total = torch.cuda.mem_get_info(self._device)
        own = torch.cuda.memory_reserved(self._device)
        fraction = max(0.0, own + free - LIMIT_SPARE) / total
        torch.cuda.set_per_process_memory_fraction(min(self._before, fraction), self._index())

    def lift(self) -> None:
        """Restores the limit that was there before."""
        if self._device is None or self._before is None:
            return
        import torch

        before, self._before = self._before, None
        torch.cuda.set_per_process_memory_fraction(before, self._index())

    def _index(self) -> int:
        import torch

        assert self._device is not None
        return torch.cuda.current_device() if self._device.index is None else int(self._device.index)


def _cuda(device: torch.device) -> tuple[str, int, int, int]:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.get_device_name(device), total, free, torch.cuda.memory_reserved(device)


def _xpu(device: torch.device) -> tuple[str, int, int, int]:
    import torch

    used, properties = int(torch.xpu.memory_reserved(device)), torch.xpu.get_device_properties(device)
    total = int(properties.total_memory)
    free = int(torch.xpu.mem_get_info(device)[0]) if hasattr(torch.xpu, "mem_get_info") else total - used
    return str(properties.name), total, free, used


def _mps(device: torch.device) -> tuple[str, int, int, int]:
    import psutil
    import torch

    recommended = getattr(torch.mps, "recommended_max_memory", None)  # since torch 2.5
    total, used = int(recommended()) if recommended else int(psutil.virtual_memory().total * 0.7), int(torch.mps.driver_allocated_memory())
    return "Apple MPS", total, max(0, total - used), used


def _unknown(device: torch.device) -> tuple[str, int, int, int]:
    return str(device), 0, 0, 0


_READERS = {"cuda": _cuda, "xpu": _xpu, "mps": _mps}
