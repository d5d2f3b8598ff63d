"""Pictures to latents and back, in the format that the VAE is held in, and in float32 where that gives no finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_trainer.models.bundle import ModelBundle

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def set_precision(bundle: ModelBundle, precision: str) -> None:
    """Brings the VAE into "fp32" or "bf16" (memory.vae_precision); "auto" leaves it as it is. A host's own numbers are not touched."""
    if precision in FORMATS and next(bundle.vae.parameters()).dtype is not FORMATS[precision]:
        bundle.vae.to(FORMATS[precision])


def encode(bundle: ModelBundle, pixels: Tensor) -> Tensor:
    """Scaled latents [n, 4, h/8, w/8] float32 of pictures [n, 3, h, w] in -1..1: the mean of the VAE's distribution."""

    def work(held: torch.dtype) -> Tensor:
        found = bundle.vae.encode(pixels.to(bundle.device, held)).latent_dist.mean.float()  # type: ignore[operator]
        return found * bundle.family.latent_scale  # type: ignore[no-any-return]

    return _finite(bundle, work)


def decode(bundle: ModelBundle, latents: Tensor) -> Tensor:
    """Pixels [n, 3, h, w] float32, about -1 to 1, of scaled latents [n, 4, h/8, w/8]."""

    def work(held: torch.dtype) -> Tensor:
        scaled = (latents / bundle.family.latent_scale).to(held)
        return bundle.vae.decode(scaled).sample.float()  # type: ignore[operator, no-any-return]

    return _finite(bundle, work)


def _finite(bundle: ModelBundle, work: Callable[[torch.dtype], Tensor]) -> Tensor:
    """What `work` gives in the held format; where some of it is no number, done again in float32 (SDXL's VAE overflows fp16)."""
    with torch.inference_mode(False), torch.no_grad():
        bundle.vae.to(bundle.device)
        held = next(bundle.vae.parameters()).dtype
        found = work(held)
        if held is torch.float32 or bool(torch.isfinite(found).all()):
            return found
        with in_float32(bundle.vae):
            return work(torch.float32)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """The module in float32 inside; its own tensors (which may be a host's) are untouched and back afterwards."""
    before = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    try:
        for tensor, data in before:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
