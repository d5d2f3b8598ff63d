"""What a step sees of a picture: its latents, kept or varied anew, and the part of it that is learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lora_trainer.config.pictures import varying
from lora_trainer.config.schema import DataConfig
from lora_trainer.data import augment
from lora_trainer.data.cache import LatentCache, as_pixels
from lora_trainer.data.images import fitted
from lora_trainer.data.masks import Masks
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
