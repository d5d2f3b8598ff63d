"""The data set of a run: scanned, split into training and validation, sorted into buckets."""

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
from lora_trainer.data.sources.assemble import assemble, prepare_records, regularisation_warnings
from lora_trainer.data.sources.blueprint import SubsetRules, resolve_dataset
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

MAX_NAMED = 5
"""Unused files that are named one by one."""


@attrs.frozen(slots=False)
class TrainingDataset:
    """The usable pictures of a run, for training and for validation, with their buckets.

    `subsets` are the folders that they come from, `datasets` the groups that batches are drawn from; a record has its index in both.
    """

    train_records: tuple[ImageRecord, ...]
    validation_records: tuple[ImageRecord, ...]
    subsets: tuple[SubsetRules, ...]
    datasets: tuple[DataConfig, ...]
    warnings: tuple[Message, ...]

    @property
    def caption_rules(self) -> captions.CaptionRules:
        """Caption rules of the first folder that is not for regularisation."""
        return next(rules.caption_rules for rules in self.subsets if not rules.is_reg)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch size of each data set."""
        return tuple(data.batch_size for data in self.datasets)

    @cached_property
    def _rules_by_subset(self) -> tuple[captions.CaptionRules, ...]:
        return tuple(rules.caption_rules for rules in self.subsets)

    def caption_rules_of(self, record: ImageRecord) -> captions.CaptionRules:
        """Caption rules of the folder that a picture comes from."""
        return self._rules_by_subset[record.subset]

    def subset_of(self, record: ImageRecord) -> SubsetRules:
        """The rules of the folder that a picture comes from."""
        return self.subsets[record.subset]

    def without_validation(self) -> TrainingDataset:
        """The same without validation pictures, for a process that leaves validation to the main one."""
        return attrs.evolve(self, validation_records=())

    @cached_property
    def digest(self) -> str:
        """Hash that is equal where the batches are the same."""
        fields = [(record.key, record.bucket, record.repeats, record.crop, record.dataset) for record in self.train_records]
        return hashlib.sha256(repr(fields).encode("utf-8", "replace")).hexdigest()

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Training and validation pictures."""
        return self.train_records + self.validation_records


def load_dataset(config: TrainConfig) -> TrainingDataset:
    """Scans and decodes the pictures, splits off validation and assigns buckets. Raises DatasetError when none can be trained on.

    A picture that cannot be fully decoded is left out here, before steps are counted, as in the tab.
    """
    description = resolve_dataset(config.data, config.validate.data_dir)
    assembled = assemble(description)
    records, mask_warnings = masks.assign_masks(
        decode_check.check_all(assembled.records, assets.cache_folder()), lambda record: description.subsets[record.subset].data
    )
    usable, prior_weight = [record for record in records if record.usable], config.loss.prior_loss_weight
    bucketed = prepare_records(
        usable, description, seed=effective.validation_seed(config), fraction=config.validate.fraction, prior_weight=prior_weight
    )
    reg_warnings = regularisation_warnings(bucketed, config.data.trigger_word, prior_weight)
    dataset = TrainingDataset(
        tuple(record for record in bucketed if not record.validation and record.repeats),
        tuple(record for record in bucketed if record.validation),
        description.subsets,
        description.datasets,
        (
            *assembled.warnings,
            *mask_warnings,
            *reg_warnings,
            *_unused_warnings(records),
        ),
    )
    subjects = [record for record in dataset.train_records if not record.is_reg]
    if not subjects:
        first = description.subsets[0].source
        raise DatasetError(
            "{folder} holds no picture that can be trained on.",
            folder=first.folder or first.metadata_file,
            path=first.field,
            fix="Add pictures.",
        )
    if not any(captions.plain_caption(record, dataset.caption_rules_of(record)) for record in subjects):
        raise DatasetError(
            "none of the {count} pictures has a caption, and there is neither a trigger word nor a class word.",
            count=len(subjects),
            path="data.trigger_word",
            fix="Write a trigger word, or put a .txt caption beside each picture.",
        )
    return dataset


def _unused_warnings(records: Sequence[ImageRecord]) -> Iterator[Message]:
    """Why files are not used, unless the user left them out; only the first few are named."""
    unused = [record for record in records if not record.usable and record.reason is not None and "left-out" not in record.notes]
    for record in unused[:MAX_NAMED]:
        yield say("{file} is not used: {why}", file=record.key, why=record.reason)
    if len(unused) > MAX_NAMED:
        yield say("{count} more files are not used.", count=len(unused) - MAX_NAMED)
