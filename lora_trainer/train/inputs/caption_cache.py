"""Encoded captions on disk, keyed by the text encoders' weights and settings, and the caption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora_trainer.data.cache.array_store import ArrayStore
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.train.step.precision import Precision

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADER_VALUES = 2
"""Values at the start of an entry that name its dtypes."""
ENCODING_VERSION = 1
"""To be incremented whenever a change of this program changes encoded captions."""


class CaptionCache:
    """Conditionings of single captions, as float32 (which holds fp16 and bf16 values exactly) in an ArrayStore in `folder`.

    `make_encoder_key` gives the part of the key besides the caption (`encoder_key`); it is called when first needed.
    """

    def __init__(self, folder: Path, make_encoder_key: Callable[[], str]) -> None:
        self._store, self._make_encoder_key = ArrayStore(folder), make_encoder_key
        self._encoder_key = ""

    def get(self, bundle: ModelBundle, caption: str, tokens: int) -> Conditioning | None:
        """The conditioning of a caption of `tokens` tokens; None where it is missing or damaged."""
        width, pooled = _widths(bundle)
        shape, key = (HEADER_VALUES + tokens * width + pooled,), self._key(caption)
        self._store.refresh(shape)
        packed = self._store.get(shape, key)
        return None if packed is None else _unpack(torch.from_numpy(packed), tokens, width)

    def put(self, caption: str, conditioning: Conditioning) -> None:
        """Stores the conditioning of one caption in its own dtypes. Raises OSError when it cannot be written."""
        self._store.put(self._key(caption), _pack(conditioning))

    def close(self) -> None:
        """Closes the files."""
        self._store.close()

    def _key(self, caption: str) -> bytes:
        self._encoder_key = self._encoder_key or self._make_encoder_key()
        return hashlib.sha256(f"{self._encoder_key}|{caption}".encode("utf-8", "surrogatepass")).digest()


def encoder_key(bundle: ModelBundle, precision: Precision, clip_skip: int, max_token_length: int) -> str:
    """Key of family, clip skip, length, device, torch version precision, and a hash of the text encoders' weights and dtypes."""
    digest = hashlib.sha256()
    for encoder in bundle.text_encoders:
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy())
    skipped = clip_skip if bundle.family.uses_clip_skip else 0
    device = torch.device(bundle.device).type
    environment = f"{torch.__version__}|{torch.get_num_threads() if device == 'cpu' else ''}|{precision.autocast}"
    return f"{ENCODING_VERSION}|{bundle.family.name}|{skipped}|{max_token_length}|{device}|{environment}|{digest.hexdigest()}"


def _widths(bundle: ModelBundle) -> tuple[int, int]:
    """Width of the hidden states and of the pooled output (0 where a family has none)."""
    pooled = 0 if bundle.text_encoder_2 is None else bundle.text_encoder_2.config.projection_dim  # type: ignore[union-attr]
    return int(bundle.unet.config.cross_attention_dim), int(pooled)  # type: ignore[union-attr, arg-type]


def _pack(conditioning: Conditioning) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Two values for the dtypes, then all values of one conditioning."""
    parts = (conditioning.states, conditioning.states[:0] if conditioning.pooled is None else conditioning.pooled)
    dtypes = torch.tensor([float(DTYPES.index(part.dtype)) for part in parts])
    packed: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = torch.cat([dtypes, *(part.float().flatten() for part in parts)]).numpy()
    return packed


def _unpack(packed: Tensor, tokens: int, width: int) -> Conditioning:
    dtypes, values = [DTYPES[int(index)] for index in packed[:HEADER_VALUES]], packed[HEADER_VALUES:]
    states, pooled = values[: tokens * width].reshape(1, tokens, width), values[tokens * width :].reshape(1, -1)
    return Conditioning(states.to(dtypes[0]), pooled.to(dtypes[1]) if pooled.numel() else None)
