"""Identity of the VAE encoder: everything that latents on disk depend on besides the picture."""

from __future__ import annotations

import hashlib

import torch

from lora_trainer.models.bundle import ModelBundle

ENCODER_PREFIXES = ("encoder.", "quant_conv.")
"""The encoder's part of a VAE; VAEs that differ in the decoder only give the same latents."""


def vae_encoder_id(bundle: ModelBundle, *, batch_size: int = 1) -> str:
    """Family, device type, and a hash over names, dtypes and bits of the encoder's weights.

    `batch_size`: pictures encoded together, which may change the last bit, as do torch's version and the number of CPU threads.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(bundle.vae.state_dict().items()):
        if name.startswith(ENCODER_PREFIXES):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy())
    scale = bundle.family.latent_scale
    device = torch.device(bundle.device).type
    rounding = f"{torch.__version__}|{torch.get_num_threads() if device == 'cpu' else ''}"
    return f"{bundle.family.name}|{scale}|{device}|{batch_size}|{rounding}|{digest.hexdigest()}"
