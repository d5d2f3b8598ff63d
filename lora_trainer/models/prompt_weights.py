"""Prompt weights in A1111's syntax: (word), (word:1.3), [word], and \\( for a literal bracket."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_trainer.models.tokenize import CHUNK_TOKENS, MAX_LENGTH, to_chunks

BRACKET_WEIGHT = 1.1
"""Factor of a pair of round brackets without a number; square ones divide by it."""
PROMPT_PIECE = re.compile(
    r"\\(?P<literal>[()\[\]\\])|:\s*(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|(?P<bracket>[()\[\]])|[^\\()\[\]:]+|.", re.S
)

WeightedTexts = list[tuple[str, float]]


def parse_prompt_attention(prompt: str) -> WeightedTexts:
    """[(text, weight)] of a prompt, neighbours of equal weight merged; unclosed brackets extend to the end."""
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(kind: str, factor: float) -> None:
        for index in range(opened[kind].pop(), len(weights)):
            weights[index] *= factor

    for match in PROMPT_PIECE.finditer(prompt):
        bracket = match["bracket"]
        if bracket in opened:
            opened[bracket].append(len(texts))
        elif match["number"] and opened["("]:
            multiply("(", float(match["number"]))
        elif bracket == ")" and opened["("]:
            multiply("(", BRACKET_WEIGHT)
        elif bracket == "]" and opened["["]:
            multiply("[", 1 / BRACKET_WEIGHT)
        else:
            texts.append(match["literal"] or match[0])
            weights.append(1.0)
    for bracket, factor in (("(", BRACKET_WEIGHT), ("[", 1 / BRACKET_WEIGHT)):
        while opened[bracket]:
            multiply(bracket, factor)
    return _merge_equal_weights(zip(texts, weights, strict=True))


def _merge_equal_weights(pieces: Any) -> WeightedTexts:
    merged: WeightedTexts = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged or [("", 1.0)]


def tokenize_weighted(tokenizer: Any, prompts: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
    """Token ids [n, 77 * limit / 75] in chunks (models/tokenize.py), and the weight of each token of the states [n, limit + 2].

    `limit` 0: the smallest multiple of 75 that fits the longest prompt.
    """
    rows = [_tokens(tokenizer, parse_prompt_attention(prompt)) for prompt in prompts]
    longest = max(len(tokens) for tokens, _ in rows)
    limit = limit or max(1, -(-min(longest, MAX_LENGTH - 2) // CHUNK_TOKENS)) * CHUNK_TOKENS
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.full((len(rows), limit + 2), end)
    ids[:, 0] = start
    weights = torch.ones(len(rows), limit + 2)
    for number, (tokens, token_weights) in enumerate(rows):
        last = min(len(tokens), limit) + 1
        ids[number, 1:last] = torch.tensor(tokens[:limit], dtype=torch.long)
        weights[number, 1:last] = torch.tensor(token_weights[:limit])
    return to_chunks(ids), weights


def _tokens(tokenizer: Any, pieces: WeightedTexts) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    weights: list[float] = []
    for text, weight in pieces:
        text_tokens = tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"][1:-1]
        tokens += text_tokens
        weights += [weight] * len(text_tokens)
    return tokens, weights


def apply_weights(states: Tensor, weights: Tensor, widths: Sequence[int]) -> Tensor:
    """The states [n, tokens, width] times their weights, with each encoder's part rescaled to its original mean, as in A1111.

    Prompts without weights are unchanged, bit for bit. `widths`: of the encoders' states.
    """
    weighted = states
    for row in ((weights != 1).any(dim=1)).nonzero().flatten().tolist():
        weighted = states.clone() if weighted is states else weighted
        start = 0
        for width in widths:
            plain = states[row, :, start : start + width].float()
            changed = plain * weights[row, :, None].to(plain)
            weighted[row, :, start : start + width] = (changed * (plain.mean() / changed.mean())).to(states.dtype)
            start += width
    return weighted
