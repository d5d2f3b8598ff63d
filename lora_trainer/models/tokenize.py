"""Captions to token ids, in chunks of CLIP's length, and chunks of hidden states to one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_LENGTH = 77
CHUNK_TOKENS = CHUNK_LENGTH - 2
"""Tokens in a chunk, between its start and end token."""
EOS_ID = 49407
"""End token of CLIP's vocabulary, in all families."""
MAX_LENGTH = 75 * 100 + 2
"""Longest text in tokens, with start and end token."""


def tokenize(tokenizer: Any, captions: Sequence[str], limit: int = CHUNK_TOKENS) -> Tensor:
    """Token ids [len(captions), 77 * limit / 75], cut at `limit` tokens (75, 150 or 225) and padded with the end token.

    Longer captions are split every 75 tokens, regardless of words, and each chunk gets a start and end token, as in sd-scripts for
    Stable Diffusion 1.
    """
    ids = tokenizer(list(captions), truncation=True, padding="max_length", max_length=limit + 2)["input_ids"]
    return to_chunks(torch.tensor(ids, dtype=torch.long).reshape(len(ids), limit + 2))


def to_chunks(ids: Tensor) -> Tensor:
    """Ids [n, limit + 2] with start and end token -> chunks of 75 tokens, each with both: [n, 77 * limit / 75]."""
    chunks = ids[:, 1:-1].reshape(len(ids), -1, CHUNK_TOKENS)
    ends = ids[:, None, [0, -1]].expand(-1, chunks.shape[1], -1)
    return torch.cat([ends[..., :1], chunks, ends[..., 1:]], dim=2).flatten(1)


def join_chunks(hidden: Tensor, count: int) -> Tensor:
    """Hidden states [count * chunks, 77, width] -> [count, 75 * chunks + 2, width]: one start, all tokens, one end."""
    if hidden.shape[0] == count:
        return hidden
    chunks = hidden.reshape(count, -1, CHUNK_LENGTH, hidden.shape[-1])
    return torch.cat([chunks[:, 0, :1], chunks[:, :, 1:-1].flatten(1, 2), chunks[:, -1, -1:]], dim=1)


def repad(ids: Tensor, pad: int) -> Tensor:
    """Chunks [n, 77] that are padded with end tokens (CLIP-L), padded with `pad` after the first end token instead."""
    ended = (ids == EOS_ID).int()
    return ids.masked_fill(ended.cumsum(dim=1) - ended > 0, pad)


def eos_index(ids: Tensor) -> Tensor:
    """Index of the first end token in each chunk [n, 77]."""
    return (ids == EOS_ID).int().argmax(dim=1)
