"""What text encoders made of captions, kept on disk by what it depends on: the encoders' every bit, and the caption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora_trainer.data.cache.array_store import LatentStore
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.train.step.precision import Precision

FORMATS = (torch.float32, torch.float16, torch.bfloat16)
HEAD = 2
"""Numbers that tell the formats."""
READER = 1
"""Counted up whenever a change of this program makes other numbers of a caption."""


class CaptionCache:
    """Conditionings of single captions, as float32 in a LatentStore in `folder`: which holds every number of a shorter format.

    `reader` tells what they depend on besides the caption (`reader_of`), and is asked for when it is first needed.
    """

    def __init__(self, folder: Path, reader: Callable[[], str]) -> None:
        self._store, self._make_reader = LatentStore(folder), reader
        self._reader = ""

    def get(self, bundle: ModelBundle, caption: str, tokens: int) -> Conditioning | None:
        """What was kept of a caption that is read as so many tokens; None where it is not there, or damaged."""
        width, pooled = _widths(bundle)
        shape, key = (HEAD + tokens * width + pooled,), self._key(caption)
        self._store.look_again(shape)
        packed = self._store.get(shape, key)
        return None if packed is None else _unpacked(torch.from_numpy(packed), tokens, width)

    def put(self, caption: str, told: Conditioning) -> None:
        """Keeps it, in whatever format it is. Raises OSError when the disk refuses."""
        self._store.put(self._key(caption), _packed(told))

    def close(self) -> None:
        """Lets go of the files."""
        self._store.close()

    def _key(self, caption: str) -> bytes:
        self._reader = self._reader or self._make_reader()
        return hashlib.sha256(f"{self._reader}|{caption}".encode("utf-8", "surrogatepass")).digest()


def encoder_key(bundle: ModelBundle, precision: Precision, clip_skip: int, max_token_length: int) -> str:
    """Family, way of reading, device, and a hash over every bit and the number format of the text encoders."""
    digest = hashlib.sha256()
    for encoder in bundle.text_encoders:
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy())
    layer = clip_skip if bundle.family.reads_clip_skip else 0
    device = torch.device(bundle.device).type
    rounding = f"{torch.__version__}|{torch.get_num_threads() if device == 'cpu' else ''}|{precision.autocast}"
    return f"{READER}|{bundle.family.name}|{layer}|{max_token_length}|{device}|{rounding}|{digest.hexdigest()}"


def _widths(bundle: ModelBundle) -> tuple[int, int]:
    """Of the text word by word, and of the text as a whole (0 where a family has none)."""
    pooled = 0 if bundle.text_encoder_2 is None else bundle.text_encoder_2.config.projection_dim  # type: ignore[union-attr]
    return int(bundle.unet.config.cross_attention_dim), int(pooled)  # type: ignore[union-attr, arg-type]


def _packed(told: Conditioning) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Two numbers for the formats, then all numbers of one caption."""
    parts = (told.states, told.states[:0] if told.pooled is None else told.pooled)
    formats = torch.tensor([float(FORMATS.index(part.dtype)) for part in parts])
    packed: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = torch.cat([formats, *(part.float().flatten() for part in parts)]).numpy()
    return packed


def _unpacked(packed: Tensor, tokens: int, width: int) -> Conditioning:
    formats, rest = [FORMATS[int(number)] for number in packed[:HEAD]], packed[HEAD:]
    states, pooled = rest[: tokens * width].reshape(1, tokens, width), rest[tokens * width :].reshape(1, -1)
    return Conditioning(states.to(formats[0]), pooled.to(formats[1]) if pooled.numel() else None)
