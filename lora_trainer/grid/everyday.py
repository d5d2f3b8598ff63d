"""Prompts that have nothing to do with what was trained: on them a network should change nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_trainer.grid.rank import PROMPTS

OWN = 2
EVERYDAY = (
    "a red circle on a white background",
    "a portrait of an old man",
    "a blue square on a black background",
    "a landscape with mountains",
    "a green triangle on a gray background",
    "a yellow cross on a blue background",
    "a photo of a dog",
    "a bowl of fruit on a table",
)
"""Shapes that even the small model draws, and what everybody draws."""
NOUN = "picture"


def everyday_prompts(captions: Sequence[str], trigger: str, class_words: str) -> list[str]:
    """Eight prompts without the trigger: two of the run's own captions without their subject, the rest from a fixed list.

    The own ones tell whether the network also changes what stands around the subject ("a picture on a beach").
    """
    own = dict.fromkeys(text for caption in captions if (text := without_subject(caption, trigger, class_words)) is not None)
    texts = list(own)
    picked = [texts[(2 * number + 1) * len(texts) // (2 * OWN)] for number in range(OWN)] if len(texts) > OWN else texts
    return list(dict.fromkeys([*picked, *EVERYDAY]))[:PROMPTS]


def without_subject(caption: str, trigger: str, class_words: str) -> str | None:
    """The caption with "picture" where trigger and class words stood; None when it held neither, or nothing else is left.

    Class words may hold the trigger (a folder called "10_sks cat" names both). A caption without either is not used: it might
    be the concept itself.
    """
    trigger = trigger.strip()
    words = _word(trigger).sub(" ", class_words).strip() if trigger else class_words.strip()
    named = bool(words) and _word(words).search(caption) is not None
    if (trigger and not _word(trigger).search(caption)) or not (trigger or named):
        return None
    text = _word(trigger).sub(" " if named else NOUN, caption) if trigger else caption
    text = _tidy(_word(words).sub(NOUN, text) if named else text)
    return text if text and text != NOUN else None


def _word(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)


def _tidy(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)
