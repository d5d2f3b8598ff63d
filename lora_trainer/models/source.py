"""Where a model comes from: a file, or the tensors that a host already holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen
class FileSource:
    """A checkpoint file in LDM layout, with an optional file that holds another VAE."""

    path: Path
    vae: Path | None = None


@attrs.frozen(eq=False)
class LiveSource:
    """Tensors of a running host, shared and never copied; keys as in a checkpoint without its three prefixes.

    `path` is the checkpoint's own file (for hashes and names), `prediction` is "epsilon" or "v".
    """

    unet_state: Mapping[str, torch.Tensor]
    vae_state: Mapping[str, torch.Tensor]
    text_state: Mapping[str, torch.Tensor]
    unet_heads: int
    text_heads: int
    tokenizer: Any
    path: Path
    prediction: str = "epsilon"


ModelSource = FileSource | LiveSource
