"""Encoded pictures kept in memory. One picture is encoded at a time, so that a cached one equals one that is read anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lora_trainer.control import Control
from lora_trainer.data.images import fitted
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.events import Progress


class LatentCache:
    """`encode`: pixels float32 [1, 3, h, w] from -1 to 1 -> latents [1, 4, h/8, w/8]. With `keep` False only validation pictures stay."""

    def __init__(self, encode: Callable[[Tensor], Tensor], *, keep: bool = True) -> None:
        self._encode = encode
        self._keep = keep
        self._kept: dict[tuple[str, bool], Tensor] = {}

    def fill(self, records: Sequence[ImageRecord], *, flip: bool, control: Control) -> Iterator[Progress]:
        """Encodes what is missing, mirrored ones too with `flip`; ends early when stopped. Raises DatasetError."""
        for done, record in enumerate(records, start=1):
            if control.stopping:
                return
            if self._keep or record.validation:
                for flipped in (False, True) if flip and not record.validation else (False,):
                    if (record.key, flipped) not in self._kept:
                        self._kept[record.key, flipped] = self._encoded(record, flipped)
            yield Progress(done)

    def get(self, record: ImageRecord, flipped: bool) -> Tensor:
        """Latents [4, h/8, w/8] on the CPU, kept or encoded now. Raises DatasetError naming the picture."""
        kept = self._kept.get((record.key, flipped))
        return self._encoded(record, flipped) if kept is None else kept

    @property
    def megabytes(self) -> float:
        """Memory that the kept latents take."""
        return sum(latent.numel() * latent.element_size() for latent in self._kept.values()) / 2**20

    def _encoded(self, record: ImageRecord, flipped: bool) -> Tensor:
        latent = self._encode(pixels_of(record, flipped))[0].detach().to("cpu", copy=True).contiguous()
        if not torch.isfinite(latent).all():
            raise DatasetError(
                "the VAE gives no finite numbers for {file}.",
                path=str(record.path),
                file=record.path.name,
                fix='Choose another VAE (model.vae), or set memory.mixed_precision to "no".',
            )
        return latent


def pixels_of(record: ImageRecord, flipped: bool) -> Tensor:
    """Pixels float32 [1, 3, h, w] from -1 to 1 of the picture in its bucket, mirrored with `flipped`. Raises DatasetError."""
    pixels = torch.from_numpy(fitted(record).copy()).permute(2, 0, 1).unsqueeze(0).to(torch.float32) / 127.5 - 1.0
    return (pixels.flip(-1) if flipped else pixels).contiguous()
