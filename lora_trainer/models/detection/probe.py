"""Tests whether a model predicts noise or v, for files without marks."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.tokenize import tokenize

LAST_TIMESTEP, SIDE, PICTURES = 999, 16, 4
HALF = 0.5


@torch.no_grad()
def probe_prediction(bundle: ModelBundle) -> str:
    """ "epsilon" or "v", by the model's prediction for pure noise at the last timestep.

    There is almost no signal left: a model of noise returns its input (correlation 1), a model of v returns minus the picture that it
    expects, which is unrelated to the input (correlation near 0).
    """
    return "epsilon" if correlation(bundle) > HALF else "v"


@torch.no_grad()
def correlation(bundle: ModelBundle) -> float:
    """Correlation -1..1 of pure noise at the last timestep with the model's prediction for it."""
    noise = torch.randn(PICTURES, bundle.family.latent_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(
        bundle.device, bundle.dtype
    )
    ids = tokenize(bundle.tokenizer, [""]).to(bundle.device)
    conditioning = bundle.family.encode_text(bundle, ids, 1).expand(PICTURES)
    prediction = bundle.family.denoise(bundle, noise, torch.full((PICTURES,), LAST_TIMESTEP, device=bundle.device), conditioning)
    return _correlation(noise.float(), prediction.float())


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
