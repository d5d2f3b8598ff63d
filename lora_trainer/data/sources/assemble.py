"""From a description to records: every folder read, pictures held back, sizes and showings given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from lora_trainer.data import batch_sampler, buckets
from lora_trainer.data.captions import holds
from lora_trainer.data.gc_pause import gc_paused
from lora_trainer.data.pictures.crops import framed
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import DatasetBlueprint, Source
from lora_trainer.data.sources.scan import Scan, rescan, split_validation
from lora_trainer.messages import Message, say


@attrs.frozen
class AssembledDataset:
    """All records in the order of the folders, one line of what was understood, and warnings."""

    records: tuple[ImageRecord, ...]
    understood: Message
    warnings: tuple[Message, ...]


@gc_paused()
def assemble(description: DatasetBlueprint, read: Callable[[Source], Scan] = rescan) -> AssembledDataset:
    """The records of every folder. Raises DatasetError for the first folder that cannot be used."""
    records: list[ImageRecord] = []
    warnings: list[Message] = list(description.warnings)
    understood: list[Message] = []
    for number, rules in enumerate(description.subsets):
        found = read(rules.source)
        known = {
            "subset": number,
            "dataset": rules.dataset,
            "is_reg": rules.is_reg,
            "validation": rules.validation,
            "alpha_mask": rules.data.alpha_mask,
            "interpolation": "" if rules.data.resize_interpolation == "lanczos" else rules.data.resize_interpolation,
        }
        changed = {name: value for name, value in known.items() if value}
        own = (attrs.evolve(record, **changed) for record in found.records) if changed else iter(found.records)
        records.extend(framed(own, rules.data.crops) if rules.data.crops else own)
        warnings.extend(found.warnings if description.simple else (_told(rules.source, message) for message in found.warnings))
        if not rules.validation:
            understood.append(found.understood)
    return AssembledDataset(tuple(records), _understood(description, understood), tuple(warnings))


@gc_paused()
def into_buckets(
    records: Iterable[ImageRecord], description: DatasetBlueprint, *, seed: int, fraction: float = 0.0, prior_weight: float = 1.0
) -> list[ImageRecord]:
    """The records as a run has them: some held back, each in its dataset's bucket, regularisation pictures balanced.

    `fraction` of the pictures is held back where there is no validation folder; a `prior_weight` of 0 shows no regularisation picture.
    """
    found = _held_back(list(records), description, fraction, seed)
    placed = [
        record
        for number, data in enumerate(description.datasets)
        for record in buckets.place([record for record in found if record.dataset == number], data)
    ]
    if len(description.datasets) > 1:
        by_key = {record.key: record for record in placed}
        placed = [by_key[record.key] for record in found]
    if not any(rules.is_reg for rules in description.subsets):
        return placed
    if not prior_weight:
        return [attrs.evolve(record, repeats=0) if record.is_reg else record for record in placed]
    return batch_sampler.balanced(placed)


def about_regularisation(records: Sequence[ImageRecord], trigger: str, prior_weight: float) -> list[Message]:
    """What the user should know of arranged regularisation pictures."""
    shown = [record for record in records if record.is_reg and record.usable]
    if not shown:
        return []
    if not prior_weight:
        return [say("loss.prior_loss_weight is 0: the regularisation pictures are not used.")]
    found = []
    if unused := sum(record.repeats == 0 for record in shown):
        found.append(
            say(
                "{count} of {all} regularisation pictures are not used: there are more than showings of the others.",
                count=unused,
                all=len(shown),
            )
        )
    if silent := sum(not record.has_caption and not record.class_tokens.strip() for record in shown):
        found.append(say("Regularisation pictures without any words ({count}): give a class word, or captions.", count=silent))
    if trigger.strip() and (speaking := [record.key for record in shown if holds(record.caption or record.class_tokens, trigger.strip())]):
        found.append(
            say(
                "The trigger word stands in the captions of regularisation pictures ({count}, the first is {name}): it would be unlearned.",
                count=len(speaking),
                name=speaking[0],
            )
        )
    return found


def _held_back(records: list[ImageRecord], description: DatasetBlueprint, fraction: float, seed: int) -> list[ImageRecord]:
    """Each folder's own share where it has one; of all others together validate.fraction."""
    own = {number for number, rules in enumerate(description.subsets) if rules.validation_split}
    by_key = {}
    for number in own:
        rules = description.subsets[number]
        drawn_by = seed if rules.validation_seed is None else rules.validation_seed
        by_key |= {
            record.key: record
            for record in split_validation([record for record in records if record.subset == number], rules.validation_split, drawn_by)
        }
    if fraction and not any(rules.validation for rules in description.subsets):
        others = [record for record in records if record.subset not in own and not record.is_reg]
        by_key |= {record.key: record for record in split_validation(others, fraction, seed)}
    return [by_key.get(record.key, record) for record in records] if by_key else records


def _understood(description: DatasetBlueprint, parts: Sequence[Message]) -> Message:
    regular = sum(rules.is_reg for rules in description.subsets)
    if len(parts) == 1:
        return parts[0]
    if description.simple:
        return say("{pictures} And regularisation pictures: {regular}", pictures=parts[0], regular=parts[1])
    return say(
        "{count} folders in {datasets} datasets, {regular} of them of regularisation pictures.",
        count=len(parts),
        datasets=len(description.datasets),
        regular=regular,
    )


def _told(source: Source, message: Message) -> Message:
    return say("{folder}: {message}", folder=Path(source.folder or source.metadata_file).name, message=message)
