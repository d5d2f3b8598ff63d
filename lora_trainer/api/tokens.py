"""How many tokens CLIP reads in a text, and whether a trigger word is one that the model knows already."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from lora_trainer.messages import Message, say


def _words(text: str) -> list[str]:
    return text.split()


ORDINARY = {"short": 3_000, "long": 24_000}
"""CLIP's vocabulary is sorted by how often its words were met: whole words before this place are ordinary (up to 3 letters, longer)."""
RARE = frozenset(_words("shs sts scs cpc coc cic msm usu ici lvl dii muk ori hru rik koo yos wny sks ohwx"))
TAGS = frozenset(_words("1girl 1boy 2girls 2boys solo 1other masterpiece chibi monochrome"))


class Tokens:
    """CLIP's tokenizer, loaded when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._counted = lru_cache(maxsize=20_000)(self._count)

    def count(self, text: str) -> int:
        """Tokens of the text without start and end."""
        return self._counted(text)

    def warning(self, trigger: str) -> Message | None:
        """Why a trigger word is not a good one; None where it is."""
        words = trigger.split()
        ordinary = [word for word in words if self._ordinary(word)]
        if words and len(ordinary) == len(words):
            return say("{word} is an ordinary word or a known tag: the model has its own idea of it.", word=trigger.strip())
        if self.count(trigger) > 6:
            return say("This is {count} tokens long: a shorter trigger word leaves more room for the rest.", count=self.count(trigger))
        return None

    def _ordinary(self, word: str) -> bool:
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
