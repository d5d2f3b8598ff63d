"""The pictures of a run: read, held back for validation, placed into buckets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import attrs

from lora_trainer import assets
from lora_trainer.config import effective
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data import captions
from lora_trainer.data.pictures import decode_check, masks
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.assemble import about_regularisation, assemble, into_buckets
from lora_trainer.data.sources.blueprint import SubsetRules, resolve_dataset
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

NAMED = 5
"""Files that are not used and named one by one."""


@attrs.frozen(slots=False)
class TrainingDataset:
    """The pictures of a run: `trained` and `held` (validation), both usable and placed into buckets.

    `subsets` are the folders that they come from, `datasets` what batches share; a record holds its places in both.
    """

    trained: tuple[ImageRecord, ...]
    held: tuple[ImageRecord, ...]
    subsets: tuple[SubsetRules, ...]
    datasets: tuple[DataConfig, ...]
    warnings: tuple[Message, ...]

    @property
    def rules(self) -> captions.CaptionRules:
        """How captions of the first folder that is not of regularisation pictures are put together."""
        return next(rules.caption for rules in self.subsets if not rules.is_reg)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Pictures per step of each dataset."""
        return tuple(data.batch_size for data in self.datasets)

    @cached_property
    def _captions(self) -> tuple[captions.CaptionRules, ...]:
        return tuple(rules.caption for rules in self.subsets)

    def rules_of(self, record: ImageRecord) -> captions.CaptionRules:
        """How the captions of a picture's folder are put together."""
        return self._captions[record.subset]

    def subset_of(self, record: ImageRecord) -> SubsetRules:
        """The rules of the folder that a picture comes from."""
        return self.subsets[record.subset]

    def without_held(self) -> TrainingDataset:
        """For a process that trains along with another one, which validates."""
        return attrs.evolve(self, held=())

    @cached_property
    def digest(self) -> str:
        """Equal where the same batches of the same pictures come."""
        told = [(record.key, record.bucket, record.repeats, record.crop, record.dataset) for record in self.trained]
        return hashlib.sha256(repr(told).encode("utf-8", "replace")).hexdigest()

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Both together."""
        return self.trained + self.held


def load_dataset(config: TrainConfig) -> TrainingDataset:
    """Scans, decodes, holds back and places the pictures. Raises DatasetError when none can be trained on.

    A picture that cannot be decoded to its end is left out here, before steps are counted, as the tab shows it.
    """
    description = resolve_dataset(config.data, config.validate.data_dir)
    found = assemble(description)
    records, about_masks = masks.with_masks(
        decode_check.check_all(found.records, assets.cache_folder()), lambda record: description.subsets[record.subset].data
    )
    usable, prior = [record for record in records if record.usable], config.loss.prior_loss_weight
    placed = into_buckets(
        usable, description, seed=effective.validation_seed(config), fraction=config.validate.fraction, prior_weight=prior
    )
    pictures = TrainingDataset(
        tuple(record for record in placed if not record.validation and record.repeats),
        tuple(record for record in placed if record.validation),
        description.subsets,
        description.datasets,
        (*found.warnings, *about_masks, *about_regularisation(placed, config.data.trigger_word, prior), *_not_used(records)),
    )
    subjects = [record for record in pictures.trained if not record.is_reg]
    if not subjects:
        first = description.subsets[0].source
        raise DatasetError(
            "{folder} holds no picture that can be trained on.",
            folder=first.folder or first.metadata_file,
            path=first.field,
            fix="Add pictures.",
        )
    if not any(captions.caption_of(record, pictures.rules_of(record)) for record in subjects):
        raise DatasetError(
            "none of the {count} pictures has a caption, and there is neither a trigger word nor a class word.",
            count=len(subjects),
            path="data.trigger_word",
            fix="Write a trigger word, or put a .txt caption beside each picture.",
        )
    return pictures


def _not_used(records: Sequence[ImageRecord]) -> Iterator[Message]:
    """What is wrong with each file that is not trained on, unless the user left it out; the first few by name."""
    wrong = [record for record in records if not record.usable and record.reason is not None and "left-out" not in record.notes]
    for record in wrong[:NAMED]:
        yield say("{file} is not used: {why}", file=record.key, why=record.reason)
    if len(wrong) > NAMED:
        yield say("{count} more files are not used.", count=len(wrong) - NAMED)
