"""Where the parts of a model are: each kind of work needs some of them on the device, and the others can leave it meanwhile."""

from __future__ import annotations

import torch
from torch import nn

from lora_trainer.models.bundle import ModelBundle

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
