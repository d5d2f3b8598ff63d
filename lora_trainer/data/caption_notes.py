"""Effects of caption options on these captions that their author may not expect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lora_trainer.data.captions import CaptionRules, caption_lines, plain_caption
from lora_trainer.data.records import ImageRecord
from lora_trainer.messages import Message, say


def caption_notes(records: Iterable[ImageRecord], rules_of: Callable[[ImageRecord], CaptionRules]) -> Iterator[tuple[str, Message]]:
    """(option, note), each option at most once."""
    unused_separators, multi_line = 0, 0
    separator = ""
    for record in records:
        rules = rules_of(record)
        if rules.keep_tokens_separator and not rules.splits_tags and rules.keep_tokens_separator in plain_caption(record, rules):
            unused_separators, separator = unused_separators + 1, rules.keep_tokens_separator
        multi_line += rules.wildcard and bool(rules.prefix or rules.suffix) and len(caption_lines(record.caption)) > 1
    if unused_separators:
        yield (
            "data.keep_tokens_separator",
            say(
                "{mark} is read as a word in {count} captions: it marks parts only where they are shuffled or dropped.",
                mark=separator,
                count=unused_separators,
            ),
        )
    if multi_line:
        yield (
            "data.enable_wildcard",
            say(
                "{count} captions have several lines: as in sd-scripts the first line gets the prefix, the last one the suffix.",
                count=multi_line,
            ),
        )
