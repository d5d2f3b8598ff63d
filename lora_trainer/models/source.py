"""Where a model comes from: a file, a folder, or tensors that a host has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen
class FileSource:
    """A checkpoint file in LDM layout or a folder in diffusers' layout, with an optional file of another VAE.

    `prediction` and `zero_terminal_snr` are the user's; None: detect them. `sha256` of the file, if known: it identifies released files
    without marks.
    """

    path: Path
    vae: Path | None = None
    prediction: str | None = None
    zero_terminal_snr: bool | None = None
    sha256: str = attrs.field(default="", eq=False)


@attrs.frozen(eq=False)
class LiveSource:
    """Tensors of a running host, shared and not copied; keys as in a checkpoint, without prefixes.

    `path` is the checkpoint's own file (for hashes and names), `prediction` is "epsilon", "v" or "flow". `unet_heads` 0: heads are
    `unet_head_width` channels wide. `text_2_state` is SDXL's second encoder. Text encoders may be in transformers' or open_clip's names.
    `sure` False: the prediction is a guess, so the model itself is tested when it is built.
    """

    unet_state: Mapping[str, torch.Tensor]
    vae_state: Mapping[str, torch.Tensor]
    text_state: Mapping[str, torch.Tensor]
    unet_heads: int
    text_heads: int
    tokenizer: Any
    path: Path
    prediction: str = "epsilon"
    family: str = "sd1"
    zero_terminal_snr: bool = False
    unet_head_width: int = 64
    text_2_state: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    text_2_heads: int = 0
    sure: bool = True

    def without_tensors(self) -> LiveSource:
        """The same facts without the tensors, so that the host's memory is not held."""
        return attrs.evolve(self, unet_state={}, vae_state={}, text_state={}, text_2_state={})


ModelSource = FileSource | LiveSource
