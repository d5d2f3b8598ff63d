"""Copies of many tensors that lie in a few storages: one transfer a storage, however many tensors are cut from it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values on the CPU, in memory that nobody else changes; views of one storage stay views of one copy."""
    copies: dict[tuple[int, torch.dtype], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.dtype)
        if place not in copies:
            copies[place] = _whole(tensor).to("cpu", copy=True)
        found[name] = copies[place].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).contiguous()
    return found


def _whole(tensor: Tensor) -> Tensor:
    """All numbers of the storage in which a tensor lies."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0)
