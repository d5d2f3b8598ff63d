"""What the model should say, by its prediction type."""

from __future__ import annotations

from torch import Tensor


def target(prediction: str, latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """The noise itself ("epsilon"), or sqrt(a) e - sqrt(1 - a) x ("v"; Salimans & Ho 2022, eq. 10)."""
    if prediction == "epsilon":
        return noise
    kept = alphas.view(-1, 1, 1, 1).to(latents.dtype)
    return kept.sqrt() * noise - (1.0 - kept).sqrt() * latents
