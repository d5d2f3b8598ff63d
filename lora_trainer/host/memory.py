"""How much memory the device has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def device_memory(device: torch.device) -> dict[str, Any]:
    """{"device", "total_mb", "free_mb", "host_mb"}: of the GPU, or of the computer's memory on a CPU.

    `host_mb` is what this process holds of it.
    """
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        return {"device": torch.cuda.get_device_name(device), "total_mb": total >> 20, "free_mb": free >> 20, "host_mb": held >> 20}
    import psutil

    memory = psutil.virtual_memory()
    held = psutil.Process().memory_info().rss
    return {"device": "CPU", "total_mb": memory.total >> 20, "free_mb": memory.available >> 20, "host_mb": held >> 20}
