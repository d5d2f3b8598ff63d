"""Where the parts of a model are: each kind of work needs some of them on the device, and the others can leave it meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lora_trainer.host.memory import device_memory
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.train.planning.memory_plan import CAPTION_BYTES, DECODE_BYTES

STEP, CAPTIONS, PICTURES, EVALUATING, LOADING = "step", "captions", "pictures", "evaluating", "loading"
"""Kinds of work: a training step; encoding captions; encoding pictures; validation, previews and saving; loading the model."""
UNET, TEXT, VAE = "unet", "text_encoder", "vae"
"""Parts of a model."""


def needed_parts(kind: str, *, trains_text: bool, caches_latents: bool) -> frozenset[str]:
    """The parts of the model that a kind of work uses from its begin to its end.

    Captions are encoded ahead unless the text encoder is trained, latents where they are cached: a step then needs neither encoder.
    """
    if kind == CAPTIONS:
        return frozenset({TEXT})
    if kind == PICTURES:
        return frozenset({VAE})
    return frozenset({UNET, *([TEXT] if trains_text else []), *([] if caches_latents else [VAE])})


def part_modules(bundle: ModelBundle) -> dict[str, tuple[nn.Module, ...]]:
    """The modules of each part."""
    return {UNET: (bundle.unet,), TEXT: bundle.text_encoders, VAE: (bundle.vae,)}


def is_on(module: nn.Module, device: torch.device) -> bool:
    """Whether a module's weights are on this kind of device."""
    return next(module.parameters()).device.type == device.type


def move(module: nn.Module, device: torch.device) -> None:
    """Moves a module's weights."""
    with torch.inference_mode(False):
        module.to(device)


def move_to_device(module: nn.Module, device: torch.device) -> None:
    """Moves a module to the device, if it was offloaded."""
    if not is_on(module, device):
        move(module, device)


STEP_BYTES = 2**30
"""What is left free beside a U-Net that comes for a step; a step that needs more frees the rest when it runs out of memory."""


def working_bytes(kind: str, picture_pixels: float, vae_element: int) -> float:
    """Bytes that a kind of work takes besides the weights, as the plan counts them. `picture_pixels`: of the pictures encoded together."""
    if kind == PICTURES:
        return DECODE_BYTES * vae_element / 4 * picture_pixels
    return float(CAPTION_BYTES if kind == CAPTIONS else STEP_BYTES)


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the modules' weights."""
    return sum(parameter.numel() * parameter.element_size() for module in modules for parameter in module.parameters())


def free_bytes(device: torch.device) -> float:
    """Bytes that torch can still hand out on the device: what the driver has, and what torch keeps unused. 0 where it is not known."""
    if device.type != "cuda":
        return float(device_memory(device)["free_mb"] * 2**20)
    return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
