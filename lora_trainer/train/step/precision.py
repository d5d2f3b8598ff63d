"""Mixed precision: dtypes, GradScaler and the autocast scope of a step; nothing global stays changed after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

from lora_trainer.errors import TrainingError
from lora_trainer.host import devices
from lora_trainer.host.memory import peak_memory
from lora_trainer.models.source import LiveSource, ModelSource

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}


@attrs.frozen
class Precision:
    """`base` is the dtype of the frozen model, `autocast` that of autocast (None: no autocast)."""

    base: torch.dtype
    autocast: torch.dtype | None
    uses_scaler: bool

    @property
    def name(self) -> str:
        """sd-scripts' name: no, fp16 or bf16."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(self.base, "no")


def choose_precision(requested: str, source: ModelSource, device: torch.device) -> Precision:
    """The precision for a model on a device. "auto" keeps the dtype of a lent model and picks one by the GPU for a file, but takes float32
    where a step in that dtype does not work.

    Raises TrainingError for fp16 on the CPU with torch before 2.3, which has no GradScaler there.
    """
    if requested != "auto":
        dtype = DTYPES[requested]
    elif isinstance(source, LiveSource):
        dtype = next(iter(source.unet_state.values())).dtype
    else:
        dtype = DTYPES[devices.auto_precision(device)]
    if requested == "auto" and device.type != "cpu" and dtype is not torch.float32 and devices.step_failure(device, dtype):
        dtype = torch.float32
    if dtype is torch.float16 and device.type == "cpu" and not hasattr(torch.amp, "GradScaler"):
        raise TrainingError(
            "fp16 cannot be trained on the CPU with torch {version}.",
            path="memory.mixed_precision",
            version=torch.__version__,
            fix='Set it to "no" or "auto".',
        )
    return Precision(dtype, None if dtype is torch.float32 else dtype, dtype is torch.float16)


def make_scaler(precision: Precision, device: torch.device) -> Any:
    """A GradScaler for fp16, else None."""
    if not precision.uses_scaler:
        return None
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, init_scale=65536.0)
    return torch.cuda.amp.GradScaler(init_scale=65536.0)


@contextlib.contextmanager
def compute_scope(precision: Precision, device: torch.device, *, grad: bool) -> Iterator[None]:
    """Gradients on or off, and autocast, for one piece of work without a yield inside."""
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        if precision.autocast is None:
            yield
        else:
            with torch.autocast(device.type, dtype=precision.autocast):
                yield


def vram_mb(device: torch.device) -> float:
    """Peak memory of the device so far in MB; that of the process without a GPU, or with one that does not report it."""
    peak_bytes = peak_memory(device)
    return _resident_mb() if peak_bytes is None else peak_bytes / 2**20


def _resident_mb() -> float:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20
    except OSError:
        return 0.0
