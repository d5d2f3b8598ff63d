"""What a step sees of each picture: its caption, cut, colours, latents and mask at this epoch and repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_trainer.config.checks.picture_options import varying
from lora_trainer.config.schema import DataConfig
from lora_trainer.data import batch_sampler, captions
from lora_trainer.data.batch_sampler import Item
from lora_trainer.data.cache.latent_cache import LatentCache, as_pixels
from lora_trainer.data.pictures import augment
from lora_trainer.data.pictures.images import fitted
from lora_trainer.data.pictures.masks import Masks
from lora_trainer.data.records import ImageRecord
from lora_trainer.loss.noise import generator_for
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.inputs.dataset import TrainingDataset


@attrs.frozen
class TrainingExample:
    """`record`: placed, with this time's size and cut; `key`: (seed, epoch, picture, repeat), from which all is drawn."""

    record: ImageRecord
    key: tuple[int, int, str, int]
    colours: augment.Colours
    flipped: bool
    caption: str


def training_example(
    pictures: TrainingDataset, item: batch_sampler.Item, *, seed: int, epoch: int, step: int = 0, total_steps: int = 0
) -> TrainingExample:
    """What an item of an epoch's batch is, a pure function of its arguments."""
    record = pictures.trained[item.index]
    rules = pictures.subset_of(record)
    key = (seed, epoch, record.key, item.repeat)
    text = caption_for(pictures, item, seed=seed, epoch=epoch, step=step, total_steps=total_steps)
    flipped = mirrored(pictures, record, key)
    cut, colours = augment.drawn(record, rules.data, seed=seed, epoch=epoch, repeat=item.repeat)
    return TrainingExample(cut, key, colours, flipped, text)


def caption_for(pictures: TrainingDataset, item: batch_sampler.Item, *, seed: int, epoch: int, step: int, total_steps: int) -> str:
    """The caption as this showing reads it after `step` steps."""
    record = pictures.trained[item.index]
    return captions.drawn_caption(
        record, pictures.rules_of(record), seed=seed, epoch=epoch, repeat=item.repeat, step=step, total_steps=total_steps
    )


def mirrored(pictures: TrainingDataset, record: ImageRecord, key: tuple[object, ...]) -> bool:
    """Whether the showing of this key is mirrored."""
    return pictures.subset_of(record).flip_aug and bool(torch.randint(0, 2, (1,), generator=generator_for("flip", *key)))


def batches(
    pictures: TrainingDataset, *, seed: int, count: int, accumulation: int = 1, total_steps: int = 0
) -> Iterator[list[TrainingExample]]:
    """The first `count` batches of a run, across epochs."""
    done, step, epoch = 0, 0, 0
    while done < count:
        epoch += 1
        found = batch_sampler.epoch_batches(pictures.trained, batch_size=pictures.batch_sizes, seed=seed, epoch=epoch)
        if not found:
            return
        for place, batch in enumerate(found[: count - done]):
            at = step + place // accumulation
            yield [training_example(pictures, item, seed=seed, epoch=epoch, step=at, total_steps=total_steps) for item in batch]
        done += len(found)
        step += -(-len(found) // accumulation)


def pixels(shown: TrainingExample) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] as the VAE reads it. Raises DatasetError naming the file."""
    picture = shown.colours.on(fitted(shown.record))
    return np.ascontiguousarray(picture[:, ::-1]) if shown.flipped else picture


def loss_mask(shown: TrainingExample, pictures: TrainingDataset) -> NDArray[np.float32] | None:
    """How much each cell of 8 x 8 pixels counts, float32 [h/8, w/8] from 0 to 1; None where all counts whole."""
    return Masks().get(shown.record, pictures.subset_of(shown.record).data, flipped=shown.flipped, keep=False)


class CaptionSampler:
    """Captions of one run: a pure function of the seed, the epoch, the step and the showing."""

    def __init__(self, pictures: TrainingDataset, seed: int, course: TrainingProgress) -> None:
        self.pictures, self.seed, self.course = pictures, seed, course

    def caption_at(self, item: Item, step: int) -> str:
        """The caption of a showing in this epoch, as it reads after `step` steps."""
        course = self.course
        return caption_for(self.pictures, item, seed=self.seed, epoch=course.epoch, step=step, total_steps=course.plan.total_steps)

    def validation_caption(self, record: ImageRecord) -> str:
        """The caption of a picture that is held back: the same each time."""
        return captions.caption_of(record, self.pictures.rules_of(record))


class LatentViews:
    """Pictures through `cache`; `options_of` gives the options of a picture's folder."""

    def __init__(self, cache: LatentCache, options_of: Callable[[ImageRecord], DataConfig], seed: int) -> None:
        self._cache, self._options_of, self._seed = cache, options_of, seed
        self._masks = Masks()

    def latents(self, record: ImageRecord, flipped: bool, *, epoch: int, repeat: int) -> tuple[Tensor, Tensor | None]:
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
