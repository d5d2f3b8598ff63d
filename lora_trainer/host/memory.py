"""How much memory the device has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch


def device_named(name: str) -> torch.device:
    """The CPU, or a CUDA device of this machine; nothing is made on it. Raises TrainerError for another."""
    import torch

    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise TrainerError(
            "there is no device {name} here.",
            path="memory.device",
            name=name,
            fix="Empty the field, or write cpu, or one of the {count} GPUs: cuda:0, cuda:1 and so on.",
            count=count,
        )
    return device


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
