"""Whether an error means that memory ran out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OOM_PHRASES = (
    "out of memory",
    "out_of_memory",
    "out_of_device_memory",
    "out_of_host_memory",
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate tensor",
    "not enough memory",
    "alloc_failed",
    "paging file is too small",
)
LIBRARY_FAILURE = re.compile(
    r"(cudnn|cublas|cusolver|cusparse|hipblas|rocblas|miopen)\w*_?status_?(not_?initialized|internal_?error|execution_?failed|unknown_?error)"
    r"|unable to find an engine|no (suitable|valid) (algorithm|execution plans?)"
)
"""What CUDA's and ROCm's libraries say when they get no memory for their workspace: they take it past torch's allocator."""
LITTLE_SHARE, LITTLE_BYTES = 0.1, 2**30
"""With less than this free on the device, such a failure means that memory ran out."""


def is_out_of_memory(error: BaseException, device: torch.device | None = None) -> bool:
    """Whether an error is a failed allocation: torch's, Python's, or that of a library which only its message tells.

    A library's failure that has other causes too counts where little is free on the `device` (None: the current GPU).
    """
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(phrase in text for phrase in OOM_PHRASES) or (LIBRARY_FAILURE.search(text) is not None and _is_nearly_full(device))


def _is_nearly_full(device: torch.device | None) -> bool:
    import torch

    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        return False
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # after an error that CUDA does not recover from
        return False
    return free < max(LITTLE_BYTES, LITTLE_SHARE * total)
