"""Pictures that are a little different each time: cut elsewhere, other colours. Pure functions of (seed, epoch, picture, repeat).

Ranges are sd-scripts': a third of the times hue turns by up to 16 degrees or brightness is bent by a gamma of 0.95 to 1.05.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_trainer.config.checks.picture_options import face_range
from lora_trainer.data.records import ImageRecord

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

COLOURED = 0.33
HUE = 16.0 / 360.0
GAMMA = 0.05


@attrs.frozen
class Colours:
    """`hue`: turn as a share of the circle; `gamma`: exponent of brightness. 0 and 1 change nothing."""

    hue: float = 0.0
    gamma: float = 1.0

    def on(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels uint8 [h, w, 3] with these colours."""
        if self.hue:
            bands = Image.fromarray(picture).convert("HSV").split()
            turned = bands[0].point([(value + round(self.hue * 256)) % 256 for value in range(256)])
            picture = np.asarray(Image.merge("HSV", (turned, *bands[1:])).convert("RGB"))
        if self.gamma != 1.0:
            table = (np.linspace(0.0, 1.0, 256) ** self.gamma * 255.0 + 0.5).astype(np.uint8)
            picture = table[picture]
        return picture


def drawn(record: ImageRecord, data: DataConfig, *, seed: int, epoch: int, repeat: int) -> tuple[ImageRecord, Colours]:
    """The placed record with this time's size and cut, and this time's colours. `data`: the options of the record's folder."""
    draw = random.Random(f"picture|{seed}|{epoch}|{record.key}|{repeat}")
    across, down, scale = draw.random(), draw.random(), draw.random()
    colours = _colours(draw) if data.color_aug else Colours()
    faces = face_range(data.face_crop_aug_range)
    face = face_of(record) if faces else None
    if faces and face:
        return _around(record, face, faces, scale), colours
    if data.random_crop and record.resized is not None and record.crop is not None:
        width, height = record.crop[2:]
        left = int(across * (record.resized[0] - width + 1))
        top = int(down * (record.resized[1] - height + 1))
        record = attrs.evolve(record, crop=(left, top, width, height))
    return record, colours


def face_of(record: ImageRecord) -> tuple[int, int, int, int] | None:
    """Middle (x, y) and size of the face in pixels of what the record shows, as its file name gives them; None where it does not."""
    words = record.path.stem.split("_")[-4:]
    if len(words) < 4 or record.path.stem.count("_") < 4 or not all(word.isdecimal() for word in words):
        return None
    x, y, width, height = (int(word) for word in words)
    if record.frame is not None:
        x -= round(record.frame[0] * record.width / (record.frame[2] - record.frame[0]))
        y -= round(record.frame[1] * record.height / (record.frame[3] - record.frame[1]))
    inside = 0 <= x < record.width and 0 <= y < record.height
    return (x, y, width, height) if inside and width and height else None


def _colours(draw: random.Random) -> Colours:
    chosen, which, amount = draw.random(), draw.random(), draw.uniform(-1.0, 1.0)
    if chosen >= COLOURED:
        return Colours()
    return Colours(hue=amount * HUE) if which < 0.5 else Colours(gamma=1.0 + amount * GAMMA)


def _around(record: ImageRecord, face: tuple[int, int, int, int], faces: tuple[float, float], share: float) -> ImageRecord:
    """Scaled so that the bucket's shorter side is between `faces` times the face, never beyond the picture's edge nor its own size."""
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.place first")
    width, height = record.bucket
    covering = max(width / record.width, height / record.height)
    at_most = max(1.0, covering)
    smallest = min(at_most, max(covering, min(record.bucket) / (max(face[2:]) * faces[1])))
    largest = min(at_most, max(smallest, min(record.bucket) / (max(face[2:]) * faces[0])))
    scale = smallest + (largest - smallest) * share
    resized = (max(width, int(record.width * scale + 0.5)), max(height, int(record.height * scale + 0.5)))
    left = min(max(0, round(face[0] * scale) - width // 2), resized[0] - width)
    top = min(max(0, round(face[1] * scale) - height // 2), resized[1] - height)
    return attrs.evolve(record, resized=resized, crop=(left, top, width, height))
