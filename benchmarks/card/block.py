"""What a block is, what it works with, and how it says that something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer.gc_pause import collect_garbage
from lora_trainer.host.memory import empty_cache
from lora_trainer.host.standalone import StandaloneHost

Figures = dict[str, Any]
"""What a block found, by name; under "rows" a list of mappings, which becomes a table of its own."""
CPU = torch.device("cpu")


class BlockFailed(Exception):
    """Something is not as it must be."""


class BlockLeftOut(Exception):
    """What a block needs is not here."""


def require(fact: object, reason: str) -> None:
    """Raises BlockFailed with the reason unless it is a fact. (`assert` would vanish under `python -O`.)"""
    if not fact:
        raise BlockFailed(reason)


def relative_error(own: Tensor, other: Tensor) -> float:
    """|own - other| / |other|, computed on the CPU in float64."""
    own, other = own.detach().cpu().double(), other.detach().cpu().double()
    return float((own - other).norm() / other.norm().clamp(min=1e-30))


@attrs.define(eq=False)
class Card:
    """The device that is examined, and a folder for what the blocks write. `kept` holds what one block has made and others use."""

    device: torch.device
    folder: Path
    kept: dict[str, Any] = attrs.field(factory=dict)
    _count: int = 0

    @property
    def is_cuda(self) -> bool:
        """Whether it is a CUDA card (ROCm counts)."""
        return self.device.type == "cuda"

    def new_folder(self) -> Path:
        """An empty folder."""
        self._count += 1
        folder = self.folder / f"{self._count:03d}"
        folder.mkdir(parents=True)
        return folder

    def host(self, folder: Path) -> StandaloneHost:
        """The stand-alone host with this device."""
        return StandaloneHost(folder, device=str(self.device))

    def clean(self) -> None:
        """Gives the device's memory back, and lifts every limit."""
        collect_garbage()
        if self.is_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, self.index)
        empty_cache(self.device)

    def synchronize(self) -> None:
        """Waits until the device has done what was asked of it."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    @property
    def index(self) -> int:
        """The number of the CUDA device."""
        return torch.cuda.current_device() if self.device.index is None else int(self.device.index)


@attrs.frozen
class Block:
    """A piece of work with its name, a line about it, and about how many seconds it takes on CUDA and on a CPU (None: needs CUDA)."""

    name: str
    title: str
    work: Callable[[Card], Figures]
    cuda_seconds: float
    cpu_seconds: float | None = None

    def estimate(self, card: Card) -> float | None:
        """About how many seconds it takes on this device; None: it cannot run there."""
        return self.cuda_seconds if card.is_cuda else self.cpu_seconds
