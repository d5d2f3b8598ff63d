"""The record of one picture of a training set; small, so that 100,000 fit in memory."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Literal

import attrs

from lora_trainer.messages import Message

Verdict = Literal["used", "rotated", "transparent", "small", "copy", "broken", "not-a-picture", "too-small", "left-out", "wrong-ending"]


@attrs.frozen
class ImageRecord:
    """One picture, or a file that cannot be used as one (`usable` False, `reason` says why).

    `key`: path inside the user's folder, with "/"; the identity that seeds captions, noise and order.
    `width` and `height` are after EXIF rotation, or those of the `frame` if there is one. `bucket`, `resized` (sizes) and
    `crop` (left, top, width, height in the resized picture) are set by buckets.assign_buckets.
    """

    path: Path
    key: str
    width: int
    height: int
    repeats: int = 1
    class_tokens: str = ""
    caption_path: Path | None = None
    caption: str = ""
    notes: tuple[Verdict, ...] = ()
    usable: bool = True
    reason: Message | None = None
    validation: bool = False
    bucket: tuple[int, int] | None = None
    resized: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    subset: int = 0
    """Index in DatasetBlueprint.subsets."""
    dataset: int = 0
    """Index in DatasetBlueprint.datasets."""
    is_reg: bool = False
    frame: tuple[float, float, float, float] | None = None
    """The part that the user chose: left, top, right, bottom as fractions 0..1 of the upright picture."""
    mask_path: Path | None = None
    alpha_mask: bool = False
    """Whether the picture's alpha channel is its mask."""
    train_resolution: tuple[int, int] | None = None
    """The bucket that a metadata file gives it."""
    interpolation: str = ""
    """Resampling filter by sd-scripts' name; "" is lanczos."""

    @property
    def has_caption(self) -> bool:
        """Whether the picture has a caption file, even an empty one."""
        return self.caption_path is not None

    @property
    def verdict(self) -> Verdict:
        """The first note, which is why it is not used if it is not; "used" without notes."""
        return self.notes[0] if self.notes else "used"

    @property
    def kept_area(self) -> float:
        """Fraction 0..1 of the picture's area that its crop keeps."""
        if self.resized is None or self.crop is None:
            return 1.0
        return self.crop[2] * self.crop[3] / (self.resized[0] * self.resized[1])


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Sorting key under which "2.png" comes before "10.png", the same on every system."""
    parts = re.split(r"([0-9]{1,4000})", text.casefold())  # int() refuses longer numbers
    return tuple(int(part) if number % 2 else part for number, part in enumerate(parts)), text


def nfc(text: str) -> str:
    """The text in Unicode normal form C, which does not depend on the file system (macOS stores ü as two characters)."""
    return unicodedata.normalize("NFC", text)
