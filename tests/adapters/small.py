"""The small model with a network on it."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import plan_layers
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.tokenize import tokenize

PARTS = ("unet", "text_encoder")


def network_of(bundle: ModelBundle, seed: int = 1, **options: object) -> NetworkAdapter:
    """A network of these settings of [network], on all parts."""
    return NetworkAdapter(bundle, plan_layers(bundle, NetworkConfig(**{"dim": 4, "alpha": 2.0, **options}), PARTS), seed=seed)


def answer(bundle: ModelBundle) -> Tensor:
    """What the model predicts for two pictures with captions."""
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        words = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, ["a red circle", ""]), 1)
        return bundle.family.denoise(bundle, noisy, torch.tensor([10, 900]), words)


def stir(network: NetworkAdapter, much: float = 0.05, seed: int = 5) -> None:
    """Moves every tensor away from where it begins."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensors in network.parameters().values():
            for tensor in tensors:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * much)
