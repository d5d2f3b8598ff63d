"""What a step sees of a picture: its latents, kept or varied anew, and the part of it that is learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lora_trainer.config.checks.picture_options import varying
from lora_trainer.config.schema import DataConfig
from lora_trainer.data.cache.latent_cache import LatentCache, as_pixels
from lora_trainer.data.pictures import augment
from lora_trainer.data.pictures.images import fitted
from lora_trainer.data.pictures.masks import Masks
from lora_trainer.data.records import ImageRecord


class Views:
    """Pictures through `cache`; `options_of` gives the options of a picture's folder."""

    def __init__(self, cache: LatentCache, options_of: Callable[[ImageRecord], DataConfig], seed: int) -> None:
        self._cache, self._options_of, self._seed = cache, options_of, seed
        self._masks = Masks()

    def seen(self, record: ImageRecord, flipped: bool, *, epoch: int, repeat: int) -> tuple[Tensor, Tensor | None]:
        """Scaled latents [4, h/8, w/8] and weights [h/8, w/8] (None: all is learned) of one showing. Raises DatasetError."""
        data = self._options_of(record)
        varied = bool(varying(data))
        if varied:
            record, colours = augment.drawn(record, data, seed=self._seed, epoch=epoch, repeat=repeat)
            latent = self._cache.encoded(record, as_pixels(colours.on(fitted(record)), flipped))
        else:
            latent = self._cache.get(record, flipped)
        weights = self._masks.get(record, data, flipped=flipped, keep=not varied)
        return latent, None if weights is None else torch.from_numpy(weights)

    def sizes(self, record: ImageRecord, flipped: bool, *, epoch: int, repeat: int) -> tuple[int, ...]:
        """What SDXL is told of one showing (`sizes_of`)."""
        data = self._options_of(record)
        if varying(data):
            record, _ = augment.drawn(record, data, seed=self._seed, epoch=epoch, repeat=repeat)
        return sizes_of(record, flipped)


def sizes_of(record: ImageRecord, flipped: bool) -> tuple[int, ...]:
    """Of a placed picture, in pixels: original height and width, top and left of the crop, height and width of the target.

    A mirrored picture is cut off on the other side.
    """
    width, height = record.bucket or (record.width, record.height)
    left, top, kept, _ = record.crop or (0, 0, width, height)
    if flipped and record.resized is not None:
        left = record.resized[0] - left - kept
    return record.height, record.width, top, left, height, width
