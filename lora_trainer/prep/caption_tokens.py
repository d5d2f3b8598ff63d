"""What CLIP makes of captions: how long they are, and which words it has none of its own for."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

WINDOW = 75
"""Tokens of one window of the text encoder."""
PIECES = 3
"""A word that is put together from this many pieces is one that the model never met as a word."""
_WORD = re.compile(r"[^\W\d_]{3,}")


@attrs.frozen
class CaptionTokens:
    """Tokens of each caption, words in pieces -> (pieces, captions that hold them), captions in letters that CLIP read little of."""

    tokens: tuple[int, ...]
    strange: tuple[tuple[str, int, int], ...]
    foreign: tuple[int, ...]


def count_caption_tokens(captions: Iterable[str], tokenizer: Any = None) -> CaptionTokens:
    """Counts the captions' tokens. `foreign` holds the places of captions that are not in Latin letters for the most part."""
    captions = list(captions)
    if tokenizer is None:
        from lora_trainer.models.load import clip_tokenizer

        tokenizer = clip_tokenizer()
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = len(tokenizer(text)["input_ids"]) - 2
        return known[text]

    tokens = tuple(count(caption) if caption else 0 for caption in captions)
    holding = Counter(word for caption in captions for word in {word.casefold() for word in _WORD.findall(caption)} if _latin(word))
    strange = [(word, count(word), number) for word, number in holding.items() if count(word) >= PIECES]
    strange.sort(key=lambda entry: (-entry[2], -entry[1], entry[0]))
    foreign = tuple(place for place, caption in enumerate(captions) if _is_foreign(caption))
    return CaptionTokens(tokens, tuple(strange), foreign)


def _is_foreign(caption: str) -> bool:
    letters = [sign for sign in caption if sign.isalpha()]
    return bool(letters) and sum(not _latin(sign) for sign in letters) > len(letters) / 2


def _latin(text: str) -> bool:
    return all(unicodedata.name(sign, "").startswith("LATIN") for sign in text)
