"""Captions to what the U-Net reads: kept while the text encoder is frozen, computed with gradients while it learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.text import tokenize
from lora_trainer.train.runtime import Precision, computing


class Captions:
    """Encodes captions for one run. A frozen encoder reads each caption once, alone, so that batching changes no bit."""

    def __init__(self, precision: Precision, clip_skip: int, trained: bool) -> None:
        self.precision, self.clip_skip, self.trained = precision, clip_skip, trained
        self._ids: dict[str, Tensor] = {}
        self._encoded: dict[str, Tensor] = {}

    def encode(self, bundle: ModelBundle, captions: Sequence[str]) -> Tensor:
        """[n, 77, width] for captions; call it inside the step's own precision scope."""
        if self.trained:
            ids = torch.stack([self._tokens(bundle, caption) for caption in captions]).to(bundle.device)
            return bundle.family.encode_text(bundle, ids, self.clip_skip)
        return torch.stack([self._frozen(bundle, caption) for caption in captions])

    def forget(self) -> None:
        """Drops what was kept of captions that may not come again; called between epochs when captions vary."""
        self._encoded.clear()

    def _tokens(self, bundle: ModelBundle, caption: str) -> Tensor:
        if caption not in self._ids:
            self._ids[caption] = tokenize(bundle.tokenizer, [caption])[0]
        return self._ids[caption]

    def _frozen(self, bundle: ModelBundle, caption: str) -> Tensor:
        if caption not in self._encoded:
            with computing(self.precision, bundle.device, grad=False):
                ids = self._tokens(bundle, caption).unsqueeze(0).to(bundle.device)
                self._encoded[caption] = bundle.family.encode_text(bundle, ids, self.clip_skip)[0]
        return self._encoded[caption]
