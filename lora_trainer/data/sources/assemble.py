"""From a blueprint to records: reads every folder, splits off validation, assigns buckets and balances regularisation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from lora_trainer.data import batch_sampler, buckets
from lora_trainer.data.captions import contains_trigger
from lora_trainer.data.pictures.crops import apply_frames
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import DatasetBlueprint, Source
from lora_trainer.data.sources.scan import Scan, cached_scan
from lora_trainer.gc_pause import gc_paused
from lora_trainer.messages import Message, say


@attrs.frozen
class AssembledDataset:
    """All records in the order of the folders, a sentence about what was read, and warnings."""

    records: tuple[ImageRecord, ...]
    summary: Message
    warnings: tuple[Message, ...]


@gc_paused()
def assemble(blueprint: DatasetBlueprint, read: Callable[[Source], Scan] = cached_scan) -> AssembledDataset:
    """Reads the records of every folder. Raises DatasetError for the first folder that cannot be used."""
    records: list[ImageRecord] = []
    warnings: list[Message] = list(blueprint.warnings)
    summaries: list[Message] = []
    for index, rules in enumerate(blueprint.subsets):
        scan = read(rules.source)
        options = {
            "subset": index,
            "dataset": rules.dataset,
            "is_reg": rules.is_reg,
            "validation": rules.validation,
            "alpha_mask": rules.data.alpha_mask,
            "interpolation": "" if rules.data.resize_interpolation == "lanczos" else rules.data.resize_interpolation,
        }
        non_defaults = {name: value for name, value in options.items() if value}
        subset_records = (attrs.evolve(record, **non_defaults) for record in scan.records) if non_defaults else iter(scan.records)
        records.extend(apply_frames(subset_records, rules.data.crops) if rules.data.crops else subset_records)
        warnings.extend(scan.warnings if blueprint.is_simple else (_with_folder(rules.source, message) for message in scan.warnings))
        if not rules.validation:
            summaries.append(scan.summary)
    return AssembledDataset(tuple(records), _summarise(blueprint, summaries), tuple(warnings))


@gc_paused()
def prepare_records(
    records: Iterable[ImageRecord], blueprint: DatasetBlueprint, *, seed: int, fraction: float = 0.0, prior_weight: float = 1.0
) -> list[ImageRecord]:
    """The records as a run uses them: validation split off, buckets assigned, regularisation pictures balanced.

    `fraction`: share for validation if there is no validation folder. `prior_weight` 0: regularisation pictures get 0 repeats.
    """
    split = _hold_back_validation(list(records), blueprint, fraction, seed)
    placed = [
        record
        for index, data in enumerate(blueprint.datasets)
        for record in buckets.assign_buckets([record for record in split if record.dataset == index], data)
    ]
    if len(blueprint.datasets) > 1:
        by_key = {record.key: record for record in placed}
        placed = [by_key[record.key] for record in split]
    if not any(rules.is_reg for rules in blueprint.subsets):
        return placed
    if not prior_weight:
        return [attrs.evolve(record, repeats=0) if record.is_reg else record for record in placed]
    return batch_sampler.balance_regularisation(placed)


def regularisation_warnings(records: Sequence[ImageRecord], trigger: str, prior_weight: float) -> list[Message]:
    """Warnings about regularisation pictures of prepared records."""
    usable = [record for record in records if record.is_reg and record.usable]
    if not usable:
        return []
    if not prior_weight:
        return [say("loss.prior_loss_weight is 0: the regularisation pictures are not used.")]
    warnings = []
    if unused := sum(record.repeats == 0 for record in usable):
        warnings.append(
            say(
                "{count} of {all} regularisation pictures are not used: there are more than showings of the others.",
                count=unused,
                all=len(usable),
            )
        )
    if without_words := sum(not record.has_caption and not record.class_tokens.strip() for record in usable):
        warnings.append(say("Regularisation pictures without any words ({count}): give a class word, or captions.", count=without_words))
    if trigger.strip() and (
        with_trigger := [record.key for record in usable if contains_trigger(record.caption or record.class_tokens, trigger.strip())]
    ):
        warnings.append(
            say(
                "The trigger word is in the captions of regularisation pictures ({count}, the first is {name}): it would be unlearned.",
                count=len(with_trigger),
                name=with_trigger[0],
            )
        )
    return warnings


def split_validation(records: Sequence[ImageRecord], fraction: float, seed: int) -> tuple[ImageRecord, ...]:
    """The records with a `fraction` of the usable ones for validation (`validation` True): at least one, never all.

    The choice depends only on the seed and each picture's key, so that an added picture changes few of the others.
    """
    usable = [record for record in records if record.usable]
    if fraction <= 0 or len(usable) < 2:
        return tuple(records)
    count = min(len(usable) - 1, max(1, math.floor(len(usable) * fraction + 0.5)))
    shuffled = sorted(usable, key=lambda record: hashlib.sha256(f"validation|{seed}|{record.key}".encode()).digest())
    validation_keys = {record.key for record in shuffled[:count]}
    return tuple(attrs.evolve(record, validation=True) if record.key in validation_keys and record.usable else record for record in records)


def _hold_back_validation(records: list[ImageRecord], blueprint: DatasetBlueprint, fraction: float, seed: int) -> list[ImageRecord]:
    """By each folder's own validation_split, and by `fraction` for all other folders together."""
    with_own_split = {index for index, rules in enumerate(blueprint.subsets) if rules.validation_split}
    by_key = {}
    for index in with_own_split:
        rules = blueprint.subsets[index]
        split_seed = seed if rules.validation_seed is None else rules.validation_seed
        by_key |= {
            record.key: record
            for record in split_validation([record for record in records if record.subset == index], rules.validation_split, split_seed)
        }
    if fraction and not any(rules.validation for rules in blueprint.subsets):
        others = [record for record in records if record.subset not in with_own_split and not record.is_reg]
        by_key |= {record.key: record for record in split_validation(others, fraction, seed)}
    return [by_key.get(record.key, record) for record in records] if by_key else records


def _summarise(blueprint: DatasetBlueprint, summaries: Sequence[Message]) -> Message:
    regular = sum(rules.is_reg for rules in blueprint.subsets)
    if len(summaries) == 1:
        return summaries[0]
    if blueprint.is_simple:
        return say("{pictures} And regularisation pictures: {regular}", pictures=summaries[0], regular=summaries[1])
    return say(
        "{count} folders in {datasets} datasets, {regular} of them of regularisation pictures.",
        count=len(summaries),
        datasets=len(blueprint.datasets),
        regular=regular,
    )


def _with_folder(source: Source, message: Message) -> Message:
    return say("{folder}: {message}", folder=Path(source.folder or source.metadata_file).name, message=message)
