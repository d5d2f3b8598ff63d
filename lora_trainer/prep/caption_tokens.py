"""What CLIP's tokenizer makes of captions and trigger words: counts, words split into pieces, text that is not in Latin letters."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import attrs

from lora_trainer.messages import Message, say

WINDOW = 75
"""Tokens that the text encoder reads at once."""
MIN_PIECES = 3
"""A word that is split into this many tokens or more is one that CLIP does not know as a word."""
CACHED_TEXTS = 20_000
LONG_TRIGGER = 6
"""Tokens above which a trigger word is too long."""
ORDINARY = {"short": 3_000, "long": 24_000}
"""CLIP's vocabulary is sorted by frequency: whole words before this place are ordinary (up to 3 letters, longer)."""
RARE = frozenset(
    {"shs", "sts", "scs", "cpc", "coc", "cic", "msm", "usu", "ici", "lvl"}
    | {"dii", "muk", "ori", "hru", "rik", "koo", "yos", "wny", "sks", "ohwx"}
)
TAGS = frozenset({"1girl", "1boy", "2girls", "2boys", "solo", "1other", "masterpiece", "chibi", "monochrome"})
_WORD = re.compile(r"[^\W\d_]{3,}")


@attrs.frozen
class CaptionStatistics:
    """`tokens` of each caption; `split_words`: (word, its tokens, number of captions with it); `non_latin`: indices of captions."""

    tokens: tuple[int, ...]
    split_words: tuple[tuple[str, int, int], ...]
    non_latin: tuple[int, ...]


class ClipTokens:
    """Counts tokens with CLIP's tokenizer, which is loaded when it is first needed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._cached_count = lru_cache(maxsize=CACHED_TEXTS)(self._count)

    def count(self, text: str) -> int:
        """Number of tokens, without start and end token and without a limit."""
        return self._cached_count(text)

    def statistics(self, captions: Iterable[str]) -> CaptionStatistics:
        """Token counts of the captions, words that CLIP splits (the most frequent first), and captions mostly not in Latin letters."""
        captions = list(captions)
        tokens = tuple(self.count(caption) if caption else 0 for caption in captions)
        frequency = Counter(
            word for caption in captions for word in {word.casefold() for word in _WORD.findall(caption)} if _is_latin(word)
        )
        split_words = [(word, self.count(word), number) for word, number in frequency.items() if self.count(word) >= MIN_PIECES]
        split_words.sort(key=lambda entry: (-entry[2], -entry[1], entry[0]))
        non_latin = tuple(index for index, caption in enumerate(captions) if _is_mostly_non_latin(caption))
        return CaptionStatistics(tokens, tuple(split_words), non_latin)

    def trigger_warning(self, trigger: str) -> Message | None:
        """Why a trigger word is a poor choice; None if it is fine."""
        words = trigger.split()
        if words and all(self._is_ordinary(word) for word in words):
            return say("{word} is an ordinary word or a known tag: the model has its own idea of it.", word=trigger.strip())
        if self.count(trigger) > LONG_TRIGGER:
            return say("This is {count} tokens long: a shorter trigger word leaves more room for the rest.", count=self.count(trigger))
        return None

    def _is_ordinary(self, word: str) -> bool:
        word = word.casefold().strip(",")
        if word in TAGS or word in RARE:
            return word in TAGS
        place = self._vocabulary().get(f"{word}</w>")
        return place is not None and place < ORDINARY["short" if len(word) <= 3 else "long"]

    def _vocabulary(self) -> Any:
        with self._lock:
            return self._loaded().encoder

    def _count(self, text: str) -> int:
        with self._lock:
            return len(self._loaded()(text)["input_ids"]) - 2

    def _loaded(self) -> Any:
        if self._tokenizer is None:
            from lora_trainer.models.load import clip_tokenizer

            self._tokenizer = clip_tokenizer()
        return self._tokenizer


def _is_mostly_non_latin(caption: str) -> bool:
    letters = [letter for letter in caption if letter.isalpha()]
    return bool(letters) and sum(not _is_latin(letter) for letter in letters) > len(letters) / 2


def _is_latin(text: str) -> bool:
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in text)
