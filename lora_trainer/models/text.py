"""Captions to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LENGTH = 77


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids [len(captions), 77], cut at 75 tokens and filled up with the end token."""
    ids = tokenizer(list(captions), truncation=True, padding="max_length", max_length=LENGTH)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text without start and end; more than 75 are cut off in training."""
    return len(tokenizer(text)["input_ids"]) - 2
