"""Words of a prompt that count more or less, as A1111's prompts say it: (word), (word:1.3), [word], and \\( for the sign itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_trainer.models.tokenize import LONGEST, READ, pieced

MORE = 1.1
"""What a pair of round brackets without a number multiplies by; a square one divides."""
SIGNS = re.compile(r"\\(?P<literal>[()\[\]\\])|:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<bracket>[()\[\]])|[^\\()\[\]:]+|.", re.S)

Weighted = list[tuple[str, float]]


def weighted(prompt: str) -> Weighted:
    """[(text, weight)] of a prompt, neighbours of one weight joined; brackets that are never closed count to the end."""
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def count(sign: str, factor: float) -> None:
        for place in range(opened[sign].pop(), len(weights)):
            weights[place] *= factor

    for found in SIGNS.finditer(prompt):
        sign = found["bracket"]
        if sign in opened:
            opened[sign].append(len(texts))
        elif found["number"] and opened["("]:
            count("(", float(found["number"]))
        elif sign == ")" and opened["("]:
            count("(", MORE)
        elif sign == "]" and opened["["]:
            count("[", 1 / MORE)
        else:
            texts.append(found["literal"] or found[0])
            weights.append(1.0)
    for sign, factor in (("(", MORE), ("[", 1 / MORE)):
        while opened[sign]:
            count(sign, factor)
    return _joined(zip(texts, weights, strict=True))


def _joined(pieces: Any) -> Weighted:
    found: Weighted = []
    for text, weight in pieces:
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        else:
            found.append((text, weight))
    return found or [("", 1.0)]


def read(tokenizer: Any, prompts: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
    """Token ids [n, 77 * limit / 75] as models/tokenize.py makes them, and the weight of each place of their states [n, limit + 2].

    `limit` 0: the least multiple of 75 that holds the longest prompt whole.
    """
    rows = [_tokens(tokenizer, weighted(prompt)) for prompt in prompts]
    longest = max(len(tokens) for tokens, _ in rows)
    limit = limit or max(1, -(-min(longest, LONGEST - 2) // READ)) * READ
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.full((len(rows), limit + 2), end)
    ids[:, 0] = start
    weights = torch.ones(len(rows), limit + 2)
    for number, (tokens, given) in enumerate(rows):
        last = min(len(tokens), limit) + 1
        ids[number, 1:last] = torch.tensor(tokens[:limit], dtype=torch.long)
        weights[number, 1:last] = torch.tensor(given[:limit])
    return pieced(ids), weights


def _tokens(tokenizer: Any, pieces: Weighted) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    weights: list[float] = []
    for text, weight in pieces:
        found = tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"][1:-1]
        tokens += found
        weights += [weight] * len(found)
    return tokens, weights


def strengthened(states: Tensor, weights: Tensor, widths: Sequence[int]) -> Tensor:
    """The states [n, places, width] times their weights, each encoder's share of them brought back to its mean, as A1111 does.

    A prompt without weights keeps every bit.
    """
    found = states
    for number in ((weights != 1).any(dim=1)).nonzero().flatten().tolist():
        found = states.clone() if found is states else found
        place = 0
        for width in widths:
            plain = states[number, :, place : place + width].float()
            changed = plain * weights[number, :, None].to(plain)
            found[number, :, place : place + width] = (changed * (plain.mean() / changed.mean())).to(states.dtype)
            place += width
    return found
