"""Stands for a VAE in tests of the cache, here and in processes of their own: python -m tests.data.encoder PICTURES CACHE [SLOW]"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from lora_trainer.config.build import build
from lora_trainer.control import Control
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.cache.latent_cache import DiskCache, LatentCache
from lora_trainer.data.pictures.crops import apply_frames

from .scanning import scan


class Encoder:
    """4 channels at an eighth of the size; notes what it encodes. `seed` makes another VAE, `slow` waits that many seconds."""

    def __init__(self, seed: int = 0, slow: float = 0.0) -> None:
        torch.manual_seed(seed)
        self.name = f"vae {seed}"
        self.layer = torch.nn.Conv2d(3, 4, 8, 8)
        self.slow = slow
        self.calls = 0

    @torch.no_grad()
    def __call__(self, pixels):
        self.calls += 1
        assert pixels.dtype == torch.float32 and pixels.shape[1] == 3 and pixels.min() >= -1 and pixels.max() <= 1
        time.sleep(self.slow)
        return self.layer(pixels)


def placed(folder: Path, crops: tuple[str, ...] = (), **data):
    options = build({"data": {"resolution": 64, "bucket_reso_steps": 8, "crops": list(crops), **data}}).data
    return assign_buckets(list(apply_frames(scan(folder).records, crops)), options)


def disk_cache(encoder: Encoder, folder: Path, **known) -> LatentCache:
    return LatentCache(encoder, disk=lambda: DiskCache(folder, encoder.name, 4), **known)


def filled(cache: LatentCache, records, *, flip: bool = False) -> list:
    return list(cache.fill(records, flip=lambda record: flip, control=Control()))


def main(pictures: str, folder: str, slow: str = "0") -> None:
    cache = disk_cache(Encoder(slow=float(slow)), Path(folder))
    for event in cache.fill(placed(Path(pictures)), flip=lambda record: True, control=Control()):
        sys.stdout.write(f"{event.done}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
