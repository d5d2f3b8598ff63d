"""Prompts that have nothing to do with what was trained: on them a network should change nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_trainer.grid.rank import PROMPTS

OWN = 2
EVERYDAY = (
    "a red circle on a white background",
    "a photo of a dog",
    "a blue square on a black background",
    "a portrait of an old man",
    "a green triangle on a gray background",
    "a yellow cross on a blue background",
    "a landscape with mountains",
    "a bowl of fruit on a table",
)
"""Shapes that even the small model draws, and what everybody draws."""
NOUN = "picture"


def everyday_prompts(captions: Sequence[str], trigger: str, class_words: str) -> list[str]:
    """Eight prompts without the trigger: two of the run's own captions with the trigger taken out, the rest from a fixed list.

    The own ones tell whether the network also changes what stands around the subject, and its class ("a woman on a beach").

    Where a caption lacks the class word, it takes the trigger's place. Without a trigger word the class words are taken for it (a
    folder called "10_sks cat" names both); captions that hold neither are not used: they might be the concept itself.
    """
    own: dict[str, None] = {}
    for caption in captions:
        if (text := without_trigger(caption, trigger, class_words)) is not None:
            own.setdefault(text)
    texts = list(own)
    picked = [texts[number * len(texts) // OWN] for number in range(OWN)] if len(texts) > OWN else texts
    return list(dict.fromkeys([*picked, *EVERYDAY]))[:PROMPTS]


def without_trigger(caption: str, trigger: str, class_words: str) -> str | None:
    """The caption without the trigger; None when it does not hold it or nothing else is left."""
    taken_out = trigger.strip() or class_words.strip()
    if not taken_out:
        return None
    subject = _cut(class_words, taken_out).strip() if trigger.strip() else ""
    held = re.compile(rf"(?<!\w){re.escape(taken_out)}(?!\w)", re.IGNORECASE)
    if not held.search(caption):
        return None
    has_subject = bool(subject) and re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", caption, re.IGNORECASE) is not None
    text = _tidy(held.sub("" if has_subject else subject or NOUN, caption))
    return text if text and text not in (subject, NOUN) else None


def _cut(words: str, part: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "", words, flags=re.IGNORECASE)


def _tidy(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)
