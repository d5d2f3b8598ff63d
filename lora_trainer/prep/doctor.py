"""The dataset doctor: problems of pictures and captions before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.config.schema import DataConfig
from lora_trainer.data import buckets, captions
from lora_trainer.data.pictures.decode_check import check_and_mark_copies
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.assemble import assemble, prepare_records
from lora_trainer.data.sources.blueprint import DatasetBlueprint, resolve_dataset
from lora_trainer.messages import Message
from lora_trainer.prep.caption_tokens import WINDOW, CaptionStatistics, ClipTokens
from lora_trainer.prep.sharpness import blurred, sharpness

if TYPE_CHECKING:
    from lora_trainer.prep.suggestion import Suggestion

WORKERS = 4
CROPPED = 0.9
"""A picture counts as cropped if less than this fraction of its area is kept."""
ProgressCallback = Callable[[int, int], object]


@attrs.frozen
class Diagnosis:
    """All findings. Tuples of strings are keys of pictures; `caption_statistics.tokens` has an entry for each of `used`."""

    summary: Message
    notes: tuple[Message, ...]
    records: tuple[ImageRecord, ...]
    buckets: tuple[tuple[tuple[int, int], int], ...]
    without_caption: tuple[str, ...]
    empty_caption: tuple[str, ...]
    too_long: tuple[tuple[str, int], ...]
    without_trigger: tuple[str, ...]
    caption_statistics: CaptionStatistics
    tags: tuple[tuple[str, int], ...]
    copies: tuple[tuple[str, Message], ...]
    blurred: tuple[str, ...]
    cropped: tuple[str, ...]
    limit: int = WINDOW

    @property
    def used(self) -> tuple[ImageRecord, ...]:
        """The records that can be trained on."""
        return tuple(record for record in self.records if record.usable)

    def keys_with(self, note: str) -> tuple[str, ...]:
        """Keys of the files with this note."""
        return tuple(record.key for record in self.records if note in record.notes)

    def to_json(self, advice: Sequence[Suggestion], language: str = "en") -> dict[str, Any]:
        """The document of `prepare scan --json`."""
        used = self.used
        unusable = [record for record in self.records if not record.usable]
        sizes = sorted((record.width, record.height) for record in used)
        by_area = sorted(sizes, key=lambda size: size[0] * size[1])
        return {
            "understood": self.summary.text(language),
            "counts": {
                "all": len(self.records),
                "used": len(used),
                **{note.replace("-", "_"): len(self.keys_with(note)) for note in NOTES},
                "cropped": len(self.cropped),
                "blurred": len(self.blurred),
                "regularisation": sum(record.is_reg for record in used),
            },
            "unusable": [
                {"key": record.key, "verdict": record.verdict, "reason": record.reason.text(language) if record.reason else ""}
                for record in unusable
            ],
            "sizes": {
                "smallest": by_area[0] if by_area else None,
                "middle": by_area[len(by_area) // 2] if by_area else None,
                "largest": by_area[-1] if by_area else None,
                "different": len(set(sizes)),
            },
            "buckets": [{"width": width, "height": height, "count": count} for (width, height), count in self.buckets],
            "captions": {
                "with": len(used) - len(self.without_caption),
                "without": list(self.without_caption),
                "empty": list(self.empty_caption),
                "too_long": [{"key": key, "tokens": tokens} for key, tokens in self.too_long],
                "limit": self.limit,
                "longest": max(self.caption_statistics.tokens, default=0),
                "without_trigger": list(self.without_trigger),
                "other_letters": [used[index].key for index in self.caption_statistics.non_latin],
                "unknown_words": [
                    {"word": word, "pieces": pieces, "captions": count} for word, pieces, count in self.caption_statistics.split_words
                ],
            },
            "tags": [{"text": text, "count": count} for text, count in self.tags],
            "copies": [{"key": key, "reason": reason.text(language)} for key, reason in self.copies],
            "cropped": list(self.cropped),
            "blurred": list(self.blurred),
            "notes": [note.text(language) for note in self.notes],
            "suggestions": [suggestion.to_json(language) for suggestion in advice],
        }


NOTES = ("rotated", "transparent", "small", "copy", "broken", "not-a-picture", "too-small", "left-out")


def diagnose(data: DataConfig, limit: int = WINDOW, progress: ProgressCallback = lambda done, total: None) -> Diagnosis:
    """Decodes and checks every picture of the dataset. Captions with more than `limit` tokens are too long.

    Raises DatasetError if no folder can be read.
    """
    blueprint = resolve_dataset(data)
    assembled = assemble(blueprint)
    records = [record for record in assembled.records if not record.validation]
    checked = []
    for record in check_and_mark_copies(records):
        checked.append(record)
        progress(len(checked), len(records))
    placed = {record.key: record for record in prepare_records([record for record in checked if record.usable], blueprint, seed=0)}
    records = [placed.get(record.key, record) for record in checked]
    return _diagnosis(records, blueprint, assembled.summary, assembled.warnings, data.trigger_word.strip(), limit)


def _diagnosis(
    records: Sequence[ImageRecord], blueprint: DatasetBlueprint, summary: Message, notes: Iterable[Message], trigger: str, limit: int
) -> Diagnosis:
    used = [record for record in records if record.usable]
    texts = [captions.plain_caption(record, blueprint.subsets[record.subset].caption_rules) for record in used]
    statistics = ClipTokens().statistics(texts)
    tags: Counter[str] = Counter()
    for record in used:
        tags.update(captions.caption_tags(record, blueprint.subsets[record.subset].caption_rules))
    with ThreadPoolExecutor(WORKERS, "lora-trainer-sharpness") as pool:
        measured = pool.map(sharpness, [record.path for record in used])
        sharpness_by_key = {record.key: value for record, value in zip(used, measured, strict=True) if value is not None}
    return Diagnosis(
        summary,
        tuple(notes),
        tuple(records),
        tuple(buckets.bucket_counts(used)),
        tuple(record.key for record in used if not record.has_caption),
        tuple(record.key for record in used if record.has_caption and not captions.first_line(record.caption)),
        tuple((record.key, count) for record, count in zip(used, statistics.tokens, strict=True) if count > limit),
        tuple(
            record.key
            for record in used
            if trigger and record.has_caption and not record.is_reg and not captions.contains_trigger(record.caption, trigger)
        ),
        statistics,
        tuple(sorted(tags.items(), key=lambda tag: (-tag[1], tag[0]))),
        tuple((record.key, record.reason) for record in used if "copy" in record.notes and record.reason is not None),
        tuple(blurred(sharpness_by_key)),
        tuple(record.key for record in used if record.kept_area < CROPPED),
        limit,
    )
