"""Number formats and the scopes that a step runs in; nothing global stays changed after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from lora_trainer.errors import TrainingError
from lora_trainer.host import devices
from lora_trainer.host.memory import peak
from lora_trainer.models.source import LiveSource, ModelSource

NAMES = {"fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}


@attrs.frozen
class Precision:
    """`base` is the format of the frozen model, `autocast` that of the calculation (None: the same, no autocast)."""

    base: torch.dtype
    autocast: torch.dtype | None
    scaled: bool

    @property
    def name(self) -> str:
        """sd-scripts' word: no, fp16 or bf16."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(self.base, "no")


def choose_precision(asked: str, source: ModelSource, device: torch.device) -> Precision:
    """The format for this model here: "auto" keeps a host's own, and picks by the GPU for a file; float32 where a step does not work so.

    fp16 needs a GradScaler, which torch before 2.3 has for CUDA only: TrainingError there.
    """
    if asked != "auto":
        base = NAMES[asked]
    elif isinstance(source, LiveSource):
        base = next(iter(source.unet_state.values())).dtype
    else:
        base = _by_device(device)
    if asked == "auto" and device.type != "cpu" and base is not torch.float32 and devices.why_not(device, base):
        base = torch.float32
    if base is torch.float16 and device.type == "cpu" and not hasattr(torch.amp, "GradScaler"):
        raise TrainingError(
            "fp16 cannot be trained on the CPU with torch {version}.",
            path="memory.mixed_precision",
            version=torch.__version__,
            fix='Set it to "no" or "auto".',
        )
    return Precision(base, None if base is torch.float32 else base, base is torch.float16)


def make_scaler(precision: Precision, device: torch.device) -> Any:
    """A GradScaler for fp16, else None."""
    if not precision.scaled:
        return None
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, init_scale=65536.0)
    return torch.cuda.amp.GradScaler(init_scale=65536.0)


@contextlib.contextmanager
def compute_scope(precision: Precision, device: torch.device, *, grad: bool) -> Iterator[None]:
    """Gradients on or off and autocast as the precision wants, for one piece of work without a yield inside."""
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        if precision.autocast is None:
            yield
        else:
            with torch.autocast(device.type, dtype=precision.autocast):
                yield


def vram_mb(device: torch.device) -> float:
    """Peak memory of the device so far in MB; of the process where there is no GPU, or one that does not tell."""
    known = peak(device)
    return _resident_mb() if known is None else known / 2**20


def _resident_mb() -> float:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20
    except OSError:
        return 0.0


def _by_device(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    major, _ = torch.cuda.get_device_capability(device)
    if "GTX 16" in torch.cuda.get_device_name(device) or major < 7:
        return torch.float32
    return torch.bfloat16 if major >= 8 else torch.float16


def cast_for_inference(part: nn.Module, device: torch.device) -> None:
    """The part on the device, wherever it was put away."""
    if not lies_on(part, device):
        with torch.inference_mode(False):
            part.to(device)


def lies_on(part: nn.Module, device: torch.device) -> bool:
    """Whether a module's weights are on this kind of device."""
    return next(part.parameters()).device.type == device.type
