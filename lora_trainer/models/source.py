"""Where a model comes from: a file, a folder, or the tensors that a host already holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen
class FileSource:
    """A checkpoint file in LDM layout or a folder in diffusers', with an optional file that holds another VAE.

    `prediction` and `zero_terminal_snr` are what the user says; None: what the file says. `sha256` is the file's where it is known:
    released files that bear no mark are told by it.
    """

    path: Path
    vae: Path | None = None
    prediction: str | None = None
    zero_terminal_snr: bool | None = None
    sha256: str = attrs.field(default="", eq=False)


@attrs.frozen(eq=False)
class LiveSource:
    """Tensors of a running host, shared and never copied; keys as in a checkpoint without the prefixes of its parts.

    `path` is the checkpoint's own file (for hashes and names), `prediction` is "epsilon" or "v". `unet_heads` 0: heads are
    `unet_head_width` channels wide. `text_2_state` is SDXL's second encoder. Text encoders may be in transformers' or open_clip's names.
    `sure` False: nobody can tell the prediction, so the model itself is asked when it is built.
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
        """What is known of it, without holding the host's memory."""
        return attrs.evolve(self, unet_state={}, vae_state={}, text_state={}, text_2_state={})


ModelSource = FileSource | LiveSource
