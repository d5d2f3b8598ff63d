"""Devices by name, each tested with one real training step of a small model before it is used.

"cuda" is NVIDIA, and AMD through ROCm; "xpu" is Intel, "mps" Apple, "dml" any GPU on Windows through DirectML. An available device need
not be able to train: operations may be missing from its backward pass, or return wrong values.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import TrainerError
from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FIELD = "memory.device"
AUTO_KINDS = ("cuda", "xpu", "mps")
"""Device types chosen automatically, the first that is available; DirectML only by name."""
TOLERANCE, HALF_TOLERANCE = 0.05, 0.2
"""Largest relative difference of the step's loss and gradient from the CPU's: TF32 and bfloat16 differ by a tenth of that."""
LABELS = {"privateuseone": "DirectML", "mps": "Apple MPS", "xpu": "Intel XPU"}


def device_named(name: str) -> torch.device:
    """The device of this name; nothing is computed on it. Raises TrainerError with the reason when it is not available."""
    import torch

    kind, _, number = name.strip().lower().partition(":")
    if kind in ("dml", "directml", "privateuseone"):
        return _directml(name, int(number) if number.isdecimal() else None)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not _is_available(device):
        available = ["cpu", *(f"{kind}:{index}" for kind in AUTO_KINDS for index in range(_device_count(kind)))]
        fix = "Empty the field, or write one of these: {here}."
        raise TrainerError("there is no device {name} here.", path=FIELD, name=name, here=", ".join(available), fix=fix)
    return device


def default_device(number: int = 0) -> tuple[torch.device, Message | None]:
    """(the GPU of this index that a training step works on, else the CPU; a message about a GPU that was found unfit)."""
    import torch

    for kind in AUTO_KINDS:
        if _device_count(kind):
            device = torch.device(kind) if kind == "mps" or not number else torch.device(kind, number)
            reason = "" if kind == "cuda" else step_failure(device, torch.float32)
            if not reason:
                return device, None
            note = say("{device} is not used: a step on it does not work ({reason}).", device=device_label(device), reason=reason)
            return torch.device("cpu"), note
    return torch.device("cpu"), None


def auto_precision(device: torch.device) -> str:
    """What "auto" computes in for a model that is read from a file: "bf16", "fp16" or "no" (float32).

    NVIDIA cards before Volta compute fp16 slowly, and those of the GTX 16 series wrongly.
    """
    import torch

    if device.type != "cuda":
        return "no"
    major, _ = torch.cuda.get_device_capability(device)
    if "GTX 16" in torch.cuda.get_device_name(device) or major < 7:
        return "no"
    return "bf16" if major >= 8 else "fp16"


def device_label(device: torch.device) -> str:
    """The usual name of the device's type."""
    import torch

    return LABELS.get(device.type, "AMD ROCm" if torch.version.hip else "CUDA")


def require_step(device: torch.device, dtype: torch.dtype) -> None:
    """Raises TrainerError, with the device's name and the reason, when a training step does not work on it in this dtype."""
    import torch

    if device.type == "cpu":
        return
    if reason := step_failure(device, dtype):
        raise TrainerError(
            "training does not work on {device} in {dtype}: {reason}",
            path=FIELD,
            device=f"{device_label(device)} ({device})",
            dtype=str(dtype).removeprefix("torch."),
            reason=reason,
            fix='Set memory.device to "cpu".' if dtype is torch.float32 else 'Set memory.mixed_precision to "no".',
        )


@lru_cache(maxsize=16)
def step_failure(device: torch.device, dtype: torch.dtype) -> str:
    """Trains a small U-Net for one step on the device: "" when loss and gradient match the CPU's, else the reason.

    Re-raises out-of-memory errors, which say nothing about the device's abilities.
    """
    import torch

    try:
        with torch.inference_mode(False), torch.enable_grad():
            expected, actual = _run_step(torch.device("cpu"), torch.float32), _run_step(device, dtype)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, AssertionError, ImportError) as error:
        if is_out_of_memory(error, device):
            raise
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    if not all(bool(torch.isfinite(each).all()) for each in actual):
        return "the result is not finite"
    deviation = max(float((own - other).norm() / other.norm()) for own, other in zip(actual, expected, strict=True))
    return (
        ""
        if deviation <= (TOLERANCE if dtype is torch.float32 else HALF_TOLERANCE)
        else f"its values differ from the CPU's by {deviation:.0%}"
    )


def _run_step(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one training step, returned on the CPU in float32; uses its own random generators."""
    import torch

    unet, layer = _small_unet(dtype)
    unet.to(device)
    delta = layer.delta
    noisy_latents, conditioning = _random((2, 4, 8, 8), 1).to(device), _random((2, 5, 32), 2).to(device)
    optimizer = torch.optim.AdamW([delta], lr=1e-3)
    is_half = dtype is torch.float16
    scaler: Any = _scaler(device) if is_half else None
    autocast = nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)
    with autocast:
        prediction = unet(noisy_latents.to(dtype), torch.tensor([10, 900], device=device), conditioning.to(dtype), return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noisy_latents.float())
    (scaler.scale(loss) if is_half else loss).backward()
    if is_half:
        scaler.unscale_(optimizer)
    assert delta.grad is not None
    gradient = delta.grad.detach().clone()
    if is_half:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    updated = delta.detach().float().cpu()
    if not bool(torch.isfinite(updated).all()):
        raise RuntimeError("the weights are not finite after the optimizer's step")
    return loss.detach().float().cpu(), gradient.float().cpu()


def _small_unet(dtype: torch.dtype) -> tuple[Any, Any]:
    """A frozen two-level U-Net with random weights, and one of its layers with a trainable float32 `delta` added to its weight."""
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
                parameter.copy_(_random(tuple(parameter.shape), number) / parameter[0].numel() ** 0.5)
            else:
                parameter.fill_(1.0)
    unet.requires_grad_(False).to(dtype)
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.register_parameter("delta", torch.nn.Parameter(torch.zeros(layer.weight.shape)))
    forward = layer.forward
    layer.forward = lambda states: forward(states) + torch.nn.functional.linear(states, layer.delta)
    return unet, layer


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _scaler(device: torch.device) -> Any:
    import torch

    return torch.amp.GradScaler(device.type) if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler()


def _is_available(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type in AUTO_KINDS and (device.index or 0) < _device_count(device.type))


def _device_count(kind: str) -> int:
    """The number of available devices of this type."""
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
            fix="It works with one version of torch only: use a WebUI that is made for DirectML, or empty the field.",
        ) from None
    device: torch.device = torch_directml.device() if number is None else torch_directml.device(number)
    return device
