"""What the options of captions do to these captions that their writer may not expect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lora_trainer.data.captions import CaptionRules, caption_of, lines_of
from lora_trainer.data.records import ImageRecord
from lora_trainer.messages import Message, say


def notes(records: Iterable[ImageRecord], rules_of: Callable[[ImageRecord], CaptionRules]) -> Iterator[tuple[str, Message]]:
    """(the option, what to know), each at most once."""
    left, half = 0, 0
    mark = ""
    for record in records:
        rules = rules_of(record)
        if rules.keep_tokens_separator and not rules.parted and rules.keep_tokens_separator in caption_of(record, rules):
            left, mark = left + 1, rules.keep_tokens_separator
        half += rules.wildcard and bool(rules.prefix or rules.suffix) and len(lines_of(record.caption)) > 1
    if left:
        yield (
            "data.keep_tokens_separator",
            say(
                "{mark} is read as a word in {count} captions: it marks parts only where they are shuffled or dropped.",
                mark=mark,
                count=left,
            ),
        )
    if half:
        yield (
            "data.enable_wildcard",
            say(
                "{count} captions have several lines: as in sd-scripts the first line gets the prefix, the last one the suffix.",
                count=half,
            ),
        )
