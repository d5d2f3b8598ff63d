"""Which VAE encodes: what latents on disk depend on besides the picture."""

from __future__ import annotations

import hashlib

import torch

from lora_trainer.models.bundle import ModelBundle

READS = ("encoder.", "quant_conv.")
"""The part of a VAE that reads pictures; VAEs that differ in drawing alone give the same latents."""


def encoder_of(bundle: ModelBundle, *, together: int = 1) -> str:
    """Family, kind of device, and a hash over every bit and the number format of the weights that read pictures.

    `together`: pictures that are encoded in one go, which may change the last bit, as do torch's version and the threads of a CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(bundle.vae.state_dict().items()):
        if name.startswith(READS):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy())
    scale = bundle.family.latent_scale
    device = torch.device(bundle.device).type
    rounding = f"{torch.__version__}|{torch.get_num_threads() if device == 'cpu' else ''}"
    return f"{bundle.family.name}|{scale}|{device}|{together}|{rounding}|{digest.hexdigest()}"
