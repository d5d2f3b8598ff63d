"""Captions to token ids, and long captions to what the U-Net reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LENGTH = 77
READ = LENGTH - 2
"""Tokens of a caption that CLIP reads at once, between its start and end token."""
END = 49407
"""The end token of CLIP's vocabulary, which all families share."""
LONGEST = 75 * 100 + 2
"""Tokens of the longest text that is read at all."""


def tokenize(tokenizer: Any, captions: Sequence[str], limit: int = READ) -> Tensor:
    """Token ids [len(captions), 77 * limit / 75], cut at `limit` tokens (75, 150 or 225) and filled up with the end token.

    Longer captions are cut every 75 tokens, without regard to words, and each piece stands between start and end token: as
    sd-scripts does for Stable Diffusion 1.
    """
    ids = tokenizer(list(captions), truncation=True, padding="max_length", max_length=limit + 2)["input_ids"]
    return pieced(torch.tensor(ids, dtype=torch.long).reshape(len(ids), limit + 2))


def pieced(whole: Tensor) -> Tensor:
    """Ids [n, limit + 2] of a start, the tokens and an end, as pieces of 75 tokens that each have both: [n, 77 * limit / 75]."""
    pieces = whole[:, 1:-1].reshape(len(whole), -1, READ)
    ends = whole[:, None, [0, -1]].expand(-1, pieces.shape[1], -1)
    return torch.cat([ends[..., :1], pieces, ends[..., 1:]], dim=2).flatten(1)


def joined(hidden: Tensor, count: int) -> Tensor:
    """Hidden states [count * pieces, 77, width] of pieces as [count, 75 * pieces + 2, width]: one start, all tokens, one end."""
    if hidden.shape[0] == count:
        return hidden
    pieces = hidden.reshape(count, -1, LENGTH, hidden.shape[-1])
    return torch.cat([pieces[:, 0, :1], pieces[:, :, 1:-1].flatten(1, 2), pieces[:, -1, -1:]], dim=1)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text without start and end; what is over the limit is cut off in training."""
    return len(tokenizer(text)["input_ids"]) - 2


def padded_with(ids: Tensor, pad: int) -> Tensor:
    """Pieces [n, 77] as CLIP-L fills them up, with end tokens, filled up with `pad` behind the first end token instead."""
    ended = (ids == END).int()
    return ids.masked_fill(ended.cumsum(dim=1) - ended > 0, pad)


def first_end(ids: Tensor) -> Tensor:
    """The place of the end token in each of the pieces [n, 77]."""
    return (ids == END).int().argmax(dim=1)
