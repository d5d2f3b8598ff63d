"""CLIP's whole vocabulary, of which the small model meets a few words: trained on those, spread out to all at the end."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

DISTRACTORS, DISTRACTED = 199, 0.06
"""Random tokens that are never trained, and the share of captions that one of them is put into: unknown words do no harm then."""
WINDOW = 77


class Vocabulary:
    """Tokens of CLIP that occur in captions, renumbered; `rows[n]` is CLIP's number of our token n."""

    def __init__(self, tokenizer: Any, captions: Iterable[str], seed: int = 0) -> None:
        self.tokenizer = tokenizer
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        known = {token for caption in set(captions) for token in tokenizer(caption)["input_ids"]} | {self.begin, self.end}
        self.size = tokenizer.vocab_size
        draw = random.Random(f"distractors|{seed}")
        others = [token for token in range(self.size) if token not in known]
        self.trained = len(known)
        self.rows = [*sorted(known), *draw.sample(others, DISTRACTORS)]
        self._number = {token: number for number, token in enumerate(self.rows)}

    def encode(self, captions: Sequence[str], seed: int, distracted: float = DISTRACTED) -> Tensor:
        """Our numbers [n, 77], now and then with a distractor put in somewhere."""
        draw = random.Random(f"tokens|{seed}")
        return torch.tensor([self._padded(self.tokenizer(caption)["input_ids"][1:-1], draw, distracted) for caption in captions])

    def spread(self, weights: Tensor, seed: int = 0) -> Tensor:
        """Rows for the whole of CLIP's vocabulary: what was met as it was trained, every other word one of the distractors.

        So an unknown word is one that the model has learned to overlook, and the packed file stays small.
        """
        generator = torch.Generator().manual_seed(seed)
        whole = weights[torch.randint(self.trained, len(self.rows), (self.size,), generator=generator)].clone()
        whole[torch.tensor(self.rows)] = weights
        return whole

    def _padded(self, tokens: Sequence[int], draw: random.Random, distracted: float) -> list[int]:
        numbers = [self._number[token] for token in tokens]
        if draw.random() < distracted:
            numbers.insert(draw.randint(0, len(numbers)), draw.randrange(self.trained, len(self.rows)))
        end = self._number[self.end]
        numbers = [self._number[self.begin], *numbers[: WINDOW - 2], end]
        return numbers + [end] * (WINDOW - len(numbers))
