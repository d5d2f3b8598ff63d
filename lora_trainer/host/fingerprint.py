"""Whether weights are still what they were: one number per tensor that every single bit goes into."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> sum of the tensor's bits, read as whole numbers: exact, in any order, on any device.

    As fast as memory is read; one transfer for all tensors of a device.
    """
    sums: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bits = tensor.detach().view(SAME_WIDTH[tensor.element_size()])
        sums[name] = bits.sum(dtype=torch.int64)
    by_device: dict[torch.device, list[str]] = {}
    for name, number in sums.items():
        by_device.setdefault(number.device, []).append(name)
    numbers: dict[str, int] = {}
    for names in by_device.values():
        numbers.update(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    return {name: numbers[name] for name in tensors}


def changed(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Names of the tensors that are not what they were."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
