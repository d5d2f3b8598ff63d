"""What is known of one picture of a training set; cheap, so that 100 000 fit in memory."""

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
    """One picture, or one file that is taken for one (`usable` False, `reason` says why).

    `key` is its path inside the folder that the user gave, with "/": the identity from which captions, noise and order are drawn.
    `width` and `height` are after EXIF rotation; where the user chose a `frame` they are the frame's. `bucket`, `resized` (sizes) and
    `crop` (left, top, width, height in the resized picture) are set by buckets.place.
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
    """Place in Pictures.subsets: the rules that differ per folder."""
    dataset: int = 0
    """Place in Pictures.datasets: training size, pictures per step, buckets."""
    is_reg: bool = False
    frame: tuple[float, float, float, float] | None = None
    """The part that the user chose: left, top, right, bottom as shares 0..1 of the upright picture."""
    mask_path: Path | None = None
    alpha_mask: bool = False
    """Whether the picture's own transparency is its mask."""
    train_resolution: tuple[int, int] | None = None
    """The group that a metadata file names for it."""
    interpolation: str = ""
    """How it is resized, in sd-scripts' words; "" is lanczos."""

    @property
    def has_caption(self) -> bool:
        """Whether a caption file stands beside the picture, be it empty."""
        return self.caption_path is not None

    @property
    def verdict(self) -> Verdict:
        """The word that matters most: why it is not used, else the first note, else "used"."""
        return self.notes[0] if self.notes else "used"

    @property
    def kept(self) -> float:
        """Share of the picture's area that its bucket keeps, 0..1."""
        if self.resized is None or self.crop is None:
            return 1.0
        return self.crop[2] * self.crop[3] / (self.resized[0] * self.resized[1])


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Sorting key under which "2.png" comes before "10.png", the same on every system."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return tuple(int(part) if number % 2 else part for number, part in enumerate(parts)), text


def stable(text: str) -> str:
    """The text in the one Unicode form that does not depend on the file system (macOS stores ü as two signs)."""
    return unicodedata.normalize("NFC", text)
