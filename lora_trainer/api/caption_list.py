"""Captions as the tab shows them: exactly as the model will read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora_trainer.api.readings import Folders, placed_as_trained
from lora_trainer.api.tokens import Tokens
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import captions
from lora_trainer.data.describe import SubsetRules
from lora_trainer.data.records import ImageRecord
from lora_trainer.messages import Message, say


def caption_list(folders: Folders, config: TrainConfig, epoch: int, language: str) -> dict[str, Any]:
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
        tags.update({part.strip() for part in captions.first_line(record.caption).split(rules[record.subset].separator) if part.strip()})
    listed = [{"text": text, "count": count, "kind": "plain"} for text, count in sorted(tags.items(), key=lambda tag: (-tag[1], tag[0]))]
    if trigger := main.trigger_word.strip():
        listed = [tag for tag in listed if str(tag["text"]).casefold() != trigger.casefold()]
        listed.insert(0, {"text": trigger, "count": len(own), "kind": "trigger"})
    return {
        "line": _line(own, main).text(language),
        "tags": listed,
        "pictures": [_caption(folders.tokens, record, rules[record.subset], config, epoch) for record in used],
    }


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


def _caption(tokens: Tokens, record: ImageRecord, rules: captions.CaptionRules, config: TrainConfig, epoch: int) -> dict[str, Any]:
    parts = captions.parts(record, rules, seed=config.seed if rules.varied else None, epoch=epoch)
    read = captions.drawn_caption(record, rules, seed=config.seed, epoch=epoch, repeat=0)
    return {
        "key": record.key,
        "name": record.path.name,
        "path": str(record.path),
        "parts": [{key: value for key, value in part._asdict().items() if value} for part in parts],
        "dropped": not read,
        "tokens": tokens.count(read),
        "limit": config.model.max_token_length,
        "has_caption": record.has_caption,
        "raw": record.caption.strip() if rules.wildcard else captions.first_line(record.caption),
        "caption_file": str(record.caption_path or record.path.with_suffix(".txt")),
        "validation": record.validation,
    }
