"""Training examples: a picture as one step sees it at an epoch and repeat. Caption, flip, augmented crop and colours, latents, loss mask.

Everything random is a pure function of (seed, epoch, picture, repeat), so a step can be done again with the same numbers. The loop takes
captions from CaptionSampler and latents from LatentViews; `first_batches` gives the same examples to show before training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_trainer.config.checks.picture_options import varying_options
from lora_trainer.config.schema import DataConfig
from lora_trainer.data import batch_sampler, captions
from lora_trainer.data.batch_sampler import Item
from lora_trainer.data.cache.latent_cache import LatentCache, to_pixels
from lora_trainer.data.pictures import augment
from lora_trainer.data.pictures.images import load_bucket_image
from lora_trainer.data.pictures.masks import MaskCache
from lora_trainer.data.records import ImageRecord
from lora_trainer.loss.noise import generator_for
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import TrainingDataset


def caption_for(dataset: TrainingDataset, item: Item, *, seed: int, epoch: int, step: int, total_steps: int) -> str:
    """The caption of an item of an epoch after `step` optimizer steps of `total_steps`."""
    record = dataset.train_records[item.index]
    return captions.process_caption(
        record, dataset.caption_rules_of(record), seed=seed, epoch=epoch, repeat=item.repeat, step=step, total_steps=total_steps
    )


class CaptionSampler:
    """Captions of one run, at the epoch where `progress` is."""

    def __init__(self, dataset: TrainingDataset, seed: int, progress: TrainingProgress) -> None:
        self.dataset, self.seed, self.progress = dataset, seed, progress

    def caption_at(self, item: Item, step: int) -> str:
        """The caption of an item of this epoch after `step` optimizer steps."""
        epoch, total_steps = self.progress.epoch, self.progress.plan.total_steps
        return caption_for(self.dataset, item, seed=self.seed, epoch=epoch, step=step, total_steps=total_steps)

    def validation_caption(self, record: ImageRecord) -> str:
        """The caption of a validation picture: the same each time."""
        return captions.plain_caption(record, self.dataset.caption_rules_of(record))


def is_flipped(dataset: TrainingDataset, record: ImageRecord, key: tuple[object, ...]) -> bool:
    """Whether the example of this key is mirrored."""
    return dataset.subset_of(record).flip_aug and bool(torch.randint(0, 2, (1,), generator=generator_for("flip", *key)))


class LatentViews:
    """Latents and loss masks of examples. `cache` encodes or keeps latents; `options_of` gives the options of a picture's folder."""

    def __init__(self, cache: LatentCache, options_of: Callable[[ImageRecord], DataConfig], seed: int) -> None:
        self._cache, self._options_of, self._seed = cache, options_of, seed
        self._masks = MaskCache()

    def latents(self, record: ImageRecord, flipped: bool, *, epoch: int, repeat: int) -> tuple[Tensor, Tensor | None]:
        """Scaled latents [channels, h/8, w/8] and loss mask [h/8, w/8] (None: no mask) of one example. Raises DatasetError."""
        data = self._options_of(record)
        varies = bool(varying_options(data))
        if varies:
            record, colours = augment.augment(record, data, seed=self._seed, epoch=epoch, repeat=repeat)
            latents = self._cache.encode(record, to_pixels(colours.apply(load_bucket_image(record)), flipped))
        else:
            latents = self._cache.get(record, flipped)
        mask = self._masks.get(record, data, flipped=flipped, cache=not varies)
        return latents, None if mask is None else torch.from_numpy(mask)

    def sizes(self, record: ImageRecord, flipped: bool, *, epoch: int, repeat: int) -> tuple[int, ...]:
        """SDXL's size conditioning of one example (`sizes_of`)."""
        data = self._options_of(record)
        if varying_options(data):
            record, _ = augment.augment(record, data, seed=self._seed, epoch=epoch, repeat=repeat)
        return sizes_of(record, flipped)


def sizes_of(record: ImageRecord, flipped: bool) -> tuple[int, ...]:
    """SDXL's size conditioning (diffusers' `add_time_ids`): original height, width, crop top, left, target height, width, in pixels.

    `record` has a bucket. A mirrored picture is cropped on the other side.
    """
    width, height = record.bucket or (record.width, record.height)
    left, top, crop_width, _ = record.crop or (0, 0, width, height)
    if flipped and record.resized is not None:
        left = record.resized[0] - left - crop_width
    return record.height, record.width, top, left, height, width


@attrs.frozen
class TrainingExample:
    """A picture as one step sees it, to be shown: `record` with this time's bucket and crop, `key` (seed, epoch, picture, repeat)."""

    record: ImageRecord
    key: tuple[int, int, str, int]
    colours: augment.Colours
    flipped: bool
    caption: str


def training_example(
    dataset: TrainingDataset, item: Item, *, seed: int, epoch: int, step: int = 0, total_steps: int = 0
) -> TrainingExample:
    """The example of an item of an epoch's batch, a pure function of its arguments."""
    record = dataset.train_records[item.index]
    key = (seed, epoch, record.key, item.repeat)
    caption = caption_for(dataset, item, seed=seed, epoch=epoch, step=step, total_steps=total_steps)
    augmented, colours = augment.augment(record, dataset.subset_of(record).data, seed=seed, epoch=epoch, repeat=item.repeat)
    return TrainingExample(augmented, key, colours, is_flipped(dataset, record, key), caption)


def first_batches(
    dataset: TrainingDataset, *, seed: int, count: int, accumulation: int = 1, total_steps: int = 0
) -> Iterator[list[TrainingExample]]:
    """The first `count` batches of a run, across epochs; `accumulation` batches make one optimizer step."""
    done, step, epoch = 0, 0, 0
    while done < count:
        epoch += 1
        batches = batch_sampler.epoch_batches(dataset.train_records, batch_size=dataset.batch_sizes, seed=seed, epoch=epoch)
        if not batches:
            return
        for number, batch in enumerate(batches[: count - done]):
            at = step + number // accumulation
            yield [training_example(dataset, item, seed=seed, epoch=epoch, step=at, total_steps=total_steps) for item in batch]
        done += len(batches)
        step += -(-len(batches) // accumulation)


def pixels(example: TrainingExample) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] as encoded by the VAE. Raises DatasetError naming the file."""
    picture = example.colours.apply(load_bucket_image(example.record))
    return np.ascontiguousarray(picture[:, ::-1]) if example.flipped else picture


def loss_mask(example: TrainingExample, dataset: TrainingDataset) -> NDArray[np.float32] | None:
    """Loss weight of each latent cell, float32 [h/8, w/8] from 0 to 1; None without a mask."""
    return MaskCache().get(example.record, dataset.subset_of(example.record).data, flipped=example.flipped, cache=False)
