"""Latents cached by sd-scripts beside pictures: `NAME_WWWWxHHHH_sd.npz`, or the older `NAME.npz`.

They have no hash of picture or VAE, so they are only read if the user asks for it, and only for matching pictures.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from lora_trainer.data.records import ImageRecord

Fault = Literal["", "none", "older", "other size", "damaged"]
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@attrs.frozen
class NpzFormat:
    """What sd-scripts' unscaled latents are multiplied by, and how many channels they must have."""

    scale: float
    channels: int


def find_npz(record: ImageRecord) -> Path | None:
    """The .npz file of a picture, preferring the newer naming."""
    names = (f"{record.path.stem}_{record.width:04d}x{record.height:04d}_sd.npz", f"{record.path.stem}.npz")
    return next((path for name in names if (path := record.path.with_name(name)).is_file()), None)


def read_npz(record: ImageRecord, flipped: bool, channels: int) -> tuple[NDArray[np.float32] | None, Fault]:
    """Unscaled latents float32 [channels, h/8, w/8] of a picture with a bucket, or why there are none.

    Refused: older than the picture, another size or crop, no flipped latents if `flipped`.
    """
    path = find_npz(record)
    if path is None or record.bucket is None or record.frame is not None:
        return None, "none"
    try:
        if path.stat().st_mtime_ns < record.path.stat().st_mtime_ns:
            return None, "older"
        height, width = record.bucket[1] // 8, record.bucket[0] // 8
        with np.load(path, allow_pickle=False) as stored:
            ending = "" if "latents" in stored else f"_{height}x{width}"
            name = ("latents_flipped" if flipped else "latents") + ending
            if name not in stored:
                return None, "other size"
            size = tuple(int(side) for side in stored["original_size" + ending]) if "original_size" + ending in stored else None
            latents = np.asarray(stored[name], dtype=np.float32)
    except UNREADABLE:
        return None, "damaged"
    if latents.shape != (channels, height, width) or size not in (None, (record.width, record.height)):
        return None, "other size"
    return latents, ""
