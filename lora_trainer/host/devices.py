"""Where a run calculates: devices by their names, each tried with one real step of a small model before it is trusted.

CUDA is NVIDIA's, and AMD's by ROCm; "xpu" is Intel's, "mps" Apple's, "dml" any card of Windows by DirectML. That a device is there does
not say that it can train: operations may be missing from its backward pass, or give other numbers.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import TrainerError
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FIELD = "memory.device"
BY_THEMSELVES = ("cuda", "xpu", "mps")
"""Kinds that are taken without being asked for, the first that is here; DirectML only by name."""
ALIKE, HALF_ALIKE = 0.05, 0.2
"""How far the step's loss and gradient may be from those of the CPU: TF32 and bfloat16 differ by a tenth of that."""
OTHERS = {"privateuseone": "DirectML", "mps": "Apple MPS", "xpu": "Intel XPU"}
OUT_OF_MEMORY = "out of memory"


def device_named(name: str) -> torch.device:
    """A device of this machine; nothing is calculated on it. Raises TrainerError that says why there is none of that name."""
    import torch

    kind, _, number = name.strip().lower().partition(":")
    if kind in ("dml", "directml", "privateuseone"):
        return _directml(name, int(number) if number.isdecimal() else None)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not _is_here(device):
        here = ["cpu", *(f"{kind}:{index}" for kind in BY_THEMSELVES for index in range(_count(kind)))]
        fix = "Empty the field, or write one of these: {here}."
        raise TrainerError("there is no device {name} here.", path=FIELD, name=name, here=", ".join(here), fix=fix)
    return device


def default_device(number: int = 0) -> tuple[torch.device, Message | None]:
    """The GPU of this number that a step works on, else the CPU; and what to tell of one that is here and is not taken."""
    import torch

    for kind in BY_THEMSELVES:
        if _count(kind):
            device = torch.device(kind) if kind == "mps" or not number else torch.device(kind, number)
            reason = "" if kind == "cuda" else why_not(device, torch.float32)
            if not reason:
                return device, None
            told = say("{device} is not used: a step on it does not work ({reason}).", device=name_of(device), reason=reason)
            return torch.device("cpu"), told
    return torch.device("cpu"), None


def name_of(device: torch.device) -> str:
    """What users call that kind of device."""
    import torch

    return OTHERS.get(device.type, "AMD ROCm" if torch.version.hip else "CUDA")


def require_step(device: torch.device, dtype: torch.dtype) -> None:
    """Raises TrainerError, with the device's name and the reason, where a real step does not work on it in this number format."""
    import torch

    if device.type == "cpu":
        return
    if reason := why_not(device, dtype):
        raise TrainerError(
            "training does not work on {device} in {dtype}: {reason}",
            path=FIELD,
            device=f"{name_of(device)} ({device})",
            dtype=str(dtype).removeprefix("torch."),
            reason=reason,
            fix='Set memory.device to "cpu".' if dtype is torch.float32 else 'Set memory.mixed_precision to "no".',
        )


@lru_cache(maxsize=16)
def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Takes one real step of a small U-Net on the device: "" when loss and gradient are the CPU's, else the reason.

    Raises what torch raises where the device has no room left, which says nothing about its steps.
    """
    import torch

    try:
        with torch.inference_mode(False), torch.enable_grad():
            expected, found = _step(torch.device("cpu"), torch.float32), _step(device, dtype)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, AssertionError, ImportError) as error:
        if OUT_OF_MEMORY in str(error).lower():
            raise
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    if not all(bool(torch.isfinite(each).all()) for each in found):
        return "what comes out are no numbers"
    off = max(float((own - other).norm() / other.norm()) for own, other in zip(found, expected, strict=True))
    return "" if off <= (ALIKE if dtype is torch.float32 else HALF_ALIKE) else f"its numbers differ from the CPU's by {off:.0%}"


def _step(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one step as a run takes it, on the CPU in float32; chance is drawn from generators of its own."""
    import torch

    unet, layer = _small_unet(dtype)
    unet.to(device)
    learned = layer.learned
    noisy, words = _numbers((2, 4, 8, 8), 1).to(device), _numbers((2, 5, 32), 2).to(device)
    optimizer = torch.optim.AdamW([learned], lr=1e-3)
    half = dtype is torch.float16
    scaler: Any = _scaler(device) if half else None
    autocast = nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)
    with autocast:
        answer = unet(noisy.to(dtype), torch.tensor([10, 900], device=device), words.to(dtype), return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(answer.float(), noisy.float())
    (scaler.scale(loss) if half else loss).backward()
    if half:
        scaler.unscale_(optimizer)
    assert learned.grad is not None
    gradient = learned.grad.detach().clone()
    if half:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    moved = learned.detach().float().cpu()
    if not bool(torch.isfinite(moved).all()):
        raise RuntimeError("the optimizer's step gives no numbers")
    return loss.detach().float().cpu(), gradient.float().cpu()


def _small_unet(dtype: torch.dtype) -> tuple[Any, Any]:
    """A frozen U-Net of two levels with numbers of its own, and a layer of it that has `learned`, a float32 matrix, beside its own."""
    import torch
    from diffusers import UNet2DConditionModel

    shape = {"block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 8}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=8, **shape, **kinds)
    unet.to_empty(device="cpu")
    with torch.no_grad():
        for number, parameter in enumerate(unet.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(_numbers(tuple(parameter.shape), number) / parameter[0].numel() ** 0.5)
            else:
                parameter.fill_(1.0)
    unet.requires_grad_(False).to(dtype)
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.register_parameter("learned", torch.nn.Parameter(torch.zeros(layer.weight.shape)))
    whole = layer.forward
    layer.forward = lambda states: whole(states) + torch.nn.functional.linear(states, layer.learned)
    return unet, layer


def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _scaler(device: torch.device) -> Any:
    import torch

    return torch.amp.GradScaler(device.type) if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler()


def _is_here(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type in BY_THEMSELVES and (device.index or 0) < _count(device.type))


def _count(kind: str) -> int:
    """How many devices of a kind are here."""
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    if kind == "xpu":
        return int(torch.xpu.device_count()) if hasattr(torch, "xpu") and torch.xpu.is_available() else 0
    return int(torch.cuda.device_count())


def _directml(name: str, number: int | None) -> torch.device:
    try:
        import torch_directml
    except ImportError:
        raise TrainerError(
            "DirectML ({name}) needs the package torch-directml, which is not installed.",
            path=FIELD,
            name=name,
            fix="Install it, or empty the field.",
        ) from None
    device: torch.device = torch_directml.device() if number is None else torch_directml.device(number)
    return device
