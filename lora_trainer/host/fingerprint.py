"""Detects changed weights: one integer per tensor that depends on its bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

INT_OF_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> sum of the tensor's elements read as integers of the same width: exact, independent of order and device.

    As fast as the memory can be read; one transfer to the CPU per device.
    """
    sums: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bits = tensor.detach().view(INT_OF_WIDTH[tensor.element_size()])
        sums[name] = bits.sum(dtype=torch.int64)
    by_device: dict[torch.device, list[str]] = {}
    for name, bit_sum in sums.items():
        by_device.setdefault(bit_sum.device, []).append(name)
    fingerprints: dict[str, int] = {}
    for names in by_device.values():
        fingerprints.update(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    return {name: fingerprints[name] for name in tensors}


def changed_tensors(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Names of the tensors that were changed, added or removed."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
