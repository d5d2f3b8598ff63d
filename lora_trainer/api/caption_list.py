"""Captions as the tab shows them: exactly what the text encoder will be given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora_trainer.api.scan_cache import ScanCache, bucket_records
from lora_trainer.config import effective
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import batch_sampler, captions
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import DatasetBlueprint, SubsetRules
from lora_trainer.messages import Message, say
from lora_trainer.prep.caption_tokens import ClipTokens

MAX_SHOWN = 5000
"""Characters of a caption that are sent; a text encoder reads some 1000."""
MAX_TAGS = 5000


def caption_list(scans: ScanCache, config: TrainConfig, epoch: int, language: str) -> dict[str, Any]:
    """The response of POST /captions: each used picture's caption as it is read in that epoch. Raises DatasetError."""
    dataset = scans.scan(config)
    subsets = dataset.blueprint.subsets
    rules = [subset.caption_rules for subset in subsets]
    train_rules = next(subset.caption_rules for subset in subsets if not subset.is_reg)
    bucketed = bucket_records(dataset.assembled.records, dataset.blueprint, config)
    used = [record for record in bucketed if _is_used(record, subsets)]
    trained = [record for record in used if not record.is_reg]
    counts: Counter[str] = Counter()
    for record in used:
        counts.update(_caption_tags(record, rules[record.subset]))
    tags = [
        {"text": text, "count": count, "kind": "plain"}
        for text, count in sorted(counts.items(), key=lambda tag: (-tag[1], tag[0]))[:MAX_TAGS]
    ]
    if trigger := train_rules.trigger_word.strip():
        tags = [tag for tag in tags if str(tag["text"]).casefold() != trigger.casefold()]
        tags.insert(0, {"text": trigger, "count": len(trained), "kind": "trigger"})
    has_token_warmup = any(rule.token_warmup_step for rule in rules)
    steps, total = _first_steps(bucketed, dataset.blueprint, config, epoch) if has_token_warmup else ({}, 0)

    def parts(record: ImageRecord) -> list[captions.Part]:
        if record.validation:
            return captions.caption_parts(record, rules[record.subset])
        step = steps.get(record.key, total)
        return captions.caption_parts(record, rules[record.subset], seed=config.seed, epoch=epoch, step=step, total_steps=total)

    return {
        "line": _summary([record for record in trained if not record.validation], train_rules).text(language),
        "tags": tags,
        "pictures": [_caption_json(scans.tokens, record, parts(record), config) for record in used],
    }


def _caption_tags(record: ImageRecord, rules: captions.CaptionRules) -> set[str]:
    """The distinct tags in the lines of a caption file that may be read."""
    lines = captions.caption_lines(record.caption)[: None if rules.wildcard else 1]
    return {part.strip()[:MAX_SHOWN] for line in lines for part in line.split(rules.separator) if part.strip()}


def _first_steps(
    records: Sequence[ImageRecord], blueprint: DatasetBlueprint, config: TrainConfig, epoch: int
) -> tuple[dict[str, int], int]:
    """({picture's key: number of steps before it is first seen in that epoch}, the run's total steps)."""
    sizes, accumulation = [data.batch_size for data in blueprint.datasets], config.steps.gradient_accumulation_steps
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


def _summary(records: Sequence[ImageRecord], rules: captions.CaptionRules) -> Message:
    captioned = sum(record.has_caption for record in records)
    uncaptioned = next((record for record in records if not record.has_caption), None)
    values = {"count": captioned, "all": len(records)}
    if uncaptioned is None:
        return say("{count} of {all} have captions", **values)
    caption = captions.plain_caption(uncaptioned, rules)
    if not caption:
        return say(
            "{count} of {all} have captions · {rest} have none, and there is no trigger word", **values, rest=len(records) - captioned
        )
    return say("{count} of {all} have captions · {rest} will use: {words}", **values, rest=len(records) - captioned, words=caption)


def _caption_json(tokens: ClipTokens, record: ImageRecord, parts: Sequence[captions.Part], config: TrainConfig) -> dict[str, Any]:
    caption = "".join(part.before + part.text for part in parts)
    raw = "\n".join(captions.caption_lines(record.caption))
    shown = parts if len(caption) <= MAX_SHOWN else [captions.Part(caption[:MAX_SHOWN], "plain"), captions.Part("…", "plain")]
    return {
        "key": record.key,
        "name": record.path.name,
        "path": str(record.path),
        "parts": [part._asdict() for part in shown],
        "dropped": not caption,
        "tokens": tokens.count(caption[:MAX_SHOWN]),
        "limit": config.model.max_token_length,
        "has_caption": record.has_caption,
        "raw": raw[:MAX_SHOWN],
        "is_cut": len(raw) > MAX_SHOWN,
        "caption_file": str(record.caption_path or record.path.with_suffix(".txt")),
        "validation": record.validation,
    }
