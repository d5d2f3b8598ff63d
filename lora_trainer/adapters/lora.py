"""An ordinary LoRA on a model's attention layers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import attention_layers
from lora_trainer.models.bundle import ModelBundle


class LoraAdapter(NetworkAdapter):
    """One rank and one alpha on all attention layers. `parts` names what is trained: "unet", "text_encoder" or both."""

    def __init__(self, bundle: ModelBundle, *, rank: int, alpha: float, parts: Sequence[str], seed: int = 0) -> None:
        super().__init__(bundle, attention_layers(bundle, parts, rank=rank, alpha=alpha), seed=seed)
        self.rank, self.alpha = rank, alpha
