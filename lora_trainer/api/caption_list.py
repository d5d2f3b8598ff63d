"""Captions as the tab shows them: exactly as the model will read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora_trainer.api.scan_cache import ScanCache, placed_as_trained
from lora_trainer.api.tokens import Tokens
from lora_trainer.config import effective
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import batch_sampler, captions
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import DatasetBlueprint, SubsetRules
from lora_trainer.messages import Message, say


def caption_list(folders: ScanCache, config: TrainConfig, epoch: int, language: str) -> dict[str, Any]:
    """What POST /captions answers: each used picture's caption as it is read in that epoch. Raises DatasetError."""
    reading = folders.read(config)
    subsets = reading.description.subsets
    rules = [subset.caption for subset in subsets]
    main = next(subset.caption for subset in subsets if not subset.is_reg)
    placed = placed_as_trained(reading.found.records, reading.description, config)
    used = [record for record in placed if _is_used(record, subsets)]
    own = [record for record in used if not record.is_reg]
    tags: Counter[str] = Counter()
    for record in used:
        tags.update(_tags(record, rules[record.subset]))
    listed = [{"text": text, "count": count, "kind": "plain"} for text, count in sorted(tags.items(), key=lambda tag: (-tag[1], tag[0]))]
    if trigger := main.trigger_word.strip():
        listed = [tag for tag in listed if str(tag["text"]).casefold() != trigger.casefold()]
        listed.insert(0, {"text": trigger, "count": len(own), "kind": "trigger"})
    growing = any(own.token_warmup_step for own in rules)
    steps, total = _steps(placed, reading.description, config, epoch) if growing else ({}, 0)

    def parts(record: ImageRecord) -> list[captions.Part]:
        if record.validation:
            return captions.parts(record, rules[record.subset])
        step = steps.get(record.key, total)
        return captions.parts(record, rules[record.subset], seed=config.seed, epoch=epoch, step=step, total_steps=total)

    return {
        "line": _line(own, main).text(language),
        "tags": listed,
        "pictures": [_caption(folders.tokens, record, parts(record), config) for record in used],
    }


def _tags(record: ImageRecord, rules: captions.CaptionRules) -> set[str]:
    """The different parts of what may be read of a caption file."""
    lines = captions.lines_of(record.caption)[: None if rules.wildcard else 1]
    return {part.strip() for line in lines for part in line.split(rules.separator) if part.strip()}


def _steps(records: Sequence[ImageRecord], description: DatasetBlueprint, config: TrainConfig, epoch: int) -> tuple[dict[str, int], int]:
    """After how many steps a run first shows each picture in that epoch, and how many steps it has."""
    sizes, accumulation = [data.batch_size for data in description.datasets], config.steps.gradient_accumulation_steps
    per_epoch = batch_sampler.steps_per_epoch(records, sizes, accumulation)
    steps = {
        records[item.index].key: (epoch - 1) * per_epoch + number // accumulation
        for number, batch in enumerate(batch_sampler.epoch_batches(records, batch_size=sizes, seed=config.seed, epoch=epoch))
        for item in batch
        if item.repeat == 0
    }
    return steps, effective.train_length(config, per_epoch)[1]


def _is_used(record: ImageRecord, subsets: Sequence[SubsetRules]) -> bool:
    return record.usable and not subsets[record.subset].validation and (record.repeats > 0 or not record.is_reg)


def _line(used: Sequence[ImageRecord], rules: captions.CaptionRules) -> Message:
    captioned = sum(record.has_caption for record in used)
    without = next((record for record in used if not record.has_caption), None)
    values = {"count": captioned, "all": len(used)}
    if without is None:
        return say("{count} of {all} have captions", **values)
    words = captions.caption_of(without, rules)
    if not words:
        return say("{count} of {all} have captions · {rest} have none, and there is no trigger word", **values, rest=len(used) - captioned)
    return say("{count} of {all} have captions · {rest} will use: {words}", **values, rest=len(used) - captioned, words=words)


def _caption(tokens: Tokens, record: ImageRecord, parts: Sequence[captions.Part], config: TrainConfig) -> dict[str, Any]:
    read = "".join(part.before + part.text for part in parts)
    return {
        "key": record.key,
        "name": record.path.name,
        "path": str(record.path),
        "parts": [part._asdict() for part in parts],
        "dropped": not read,
        "tokens": tokens.count(read),
        "limit": config.model.max_token_length,
        "has_caption": record.has_caption,
        "raw": "\n".join(captions.lines_of(record.caption)),
        "caption_file": str(record.caption_path or record.path.with_suffix(".txt")),
        "validation": record.validation,
    }
