"""Asking a model itself whether it predicts the noise or v, where no mark on its file tells."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.tokenize import tokenize

LAST, SIDE, PICTURES = 999, 16, 4
HALF = 0.5


@torch.no_grad()
def asked(bundle: ModelBundle) -> str:
    """ "epsilon" or "v", by the model's answer to pure noise at the last step.

    There nearly nothing of a picture is left, so what predicts the noise gives back its input (correlation 1), and what predicts v
    gives minus the picture that it imagines, which has nothing to do with the input (correlation near 0).
    """
    return "epsilon" if correlation(bundle) > HALF else "v"


@torch.no_grad()
def correlation(bundle: ModelBundle) -> float:
    """Of pure noise at the last step with the model's answer to it, in -1..1."""
    noise = torch.randn(PICTURES, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(bundle.device, bundle.dtype)
    ids = tokenize(bundle.tokenizer, [""]).to(bundle.device)
    words = bundle.family.encode_text(bundle, ids, 1).repeated(PICTURES)
    answer = bundle.family.denoise(bundle, noise, torch.full((PICTURES,), LAST, device=bundle.device), words)
    return _correlation(noise.float(), answer.float())


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
