"""Encodes pictures to latents and back in the VAE's dtype, and in float32 where the result is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.train.memory import placement

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def set_precision(bundle: ModelBundle, precision: str) -> None:
    """Casts the VAE to "fp32" or "bf16" (memory.vae_precision); "auto" leaves it as it is. A host's own tensors are not changed."""
    if precision in DTYPES and next(bundle.vae.parameters()).dtype is not DTYPES[precision]:
        bundle.vae.to(DTYPES[precision])


def encode(bundle: ModelBundle, pixels: Tensor) -> Tensor:
    """Scaled latents [n, channels, h/8, w/8] float32 of pictures [n, 3, h, w] in -1..1: the mean of the VAE's distribution."""

    def run(dtype: torch.dtype) -> Tensor:
        latents = bundle.vae.encode(pixels.to(bundle.device, dtype)).latent_dist.mean.float()  # type: ignore[operator]
        return latents * bundle.family.latent_scale  # type: ignore[no-any-return]

    return _with_float32_fallback(bundle, run)


def decode(bundle: ModelBundle, latents: Tensor) -> Tensor:
    """Pixels [n, 3, h, w] float32, about -1 to 1, of scaled latents [n, channels, h/8, w/8]."""

    def run(dtype: torch.dtype) -> Tensor:
        scaled = (latents / bundle.family.latent_scale).to(dtype)
        return bundle.vae.decode(scaled).sample.float()  # type: ignore[operator, no-any-return]

    return _with_float32_fallback(bundle, run)


def _with_float32_fallback(bundle: ModelBundle, run: Callable[[torch.dtype], Tensor]) -> Tensor:
    """The output of `run` in the VAE's dtype, or in float32 where that is not finite (SDXL's VAE overflows fp16)."""
    with torch.inference_mode(False), torch.no_grad():
        placement.move_to_device(bundle.vae, bundle.device)
        dtype = next(bundle.vae.parameters()).dtype
        output = run(dtype)
        if dtype is torch.float32 or bool(torch.isfinite(output).all()):
            return output
        with in_float32(bundle.vae):
            return run(torch.float32)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in float32; afterwards it has its own tensors (which may be a host's) again, unchanged."""
    saved = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    try:
        for tensor, data in saved:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in saved:
            tensor.data = data
