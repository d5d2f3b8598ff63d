"""Random crops and colours, as pure functions of (seed, epoch, picture, repeat).

Ranges are sd-scripts': for a third of the showings, hue shifts by up to 16 degrees or gamma is 0.95 to 1.05.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_trainer.config.checks.picture_options import parse_face_crop_range
from lora_trainer.data.records import ImageRecord

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

COLOUR_PROBABILITY = 0.33
MAX_HUE = 16.0 / 360.0
MAX_GAMMA_CHANGE = 0.05


@attrs.frozen
class Colours:
    """`hue`: shift as a fraction of the circle; `gamma`: exponent of brightness. 0 and 1 change nothing."""

    hue: float = 0.0
    gamma: float = 1.0

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels uint8 [h, w, 3] with these colours."""
        if self.hue:
            bands = Image.fromarray(picture).convert("HSV").split()
            turned = bands[0].point([(value + round(self.hue * 256)) % 256 for value in range(256)])
            picture = np.asarray(Image.merge("HSV", (turned, *bands[1:])).convert("RGB"))
        if self.gamma != 1.0:
            table = (np.linspace(0.0, 1.0, 256) ** self.gamma * 255.0 + 0.5).astype(np.uint8)
            picture = table[picture]
        return picture


def augment(record: ImageRecord, data: DataConfig, *, seed: int, epoch: int, repeat: int) -> tuple[ImageRecord, Colours]:
    """The record with the size and crop of this showing, and its colours. `data`: the options of the record's folder."""
    rng = random.Random(f"picture|{seed}|{epoch}|{record.key}|{repeat}")
    across, down, scale = rng.random(), rng.random(), rng.random()
    colours = _draw_colours(rng) if data.color_aug else Colours()
    faces = parse_face_crop_range(data.face_crop_aug_range)
    face = face_in_name(record) if faces else None
    if faces and face:
        return _crop_around_face(record, face, faces, scale), colours
    if data.random_crop and record.resized is not None and record.crop is not None:
        width, height = record.crop[2:]
        left = int(across * (record.resized[0] - width + 1))
        top = int(down * (record.resized[1] - height + 1))
        record = attrs.evolve(record, crop=(left, top, width, height))
    return record, colours


def face_in_name(record: ImageRecord) -> tuple[int, int, int, int] | None:
    """Center (x, y) and size in pixels of the face that the file name gives (sd-scripts' NAME_x_y_w_h), else None."""
    numbers = record.path.stem.split("_")[-4:]
    if len(numbers) < 4 or record.path.stem.count("_") < 4 or not all(number.isdecimal() for number in numbers):
        return None
    x, y, width, height = (int(number) for number in numbers)
    if record.frame is not None:
        x -= round(record.frame[0] * record.width / (record.frame[2] - record.frame[0]))
        y -= round(record.frame[1] * record.height / (record.frame[3] - record.frame[1]))
    is_inside = 0 <= x < record.width and 0 <= y < record.height
    return (x, y, width, height) if is_inside and width and height else None


def _draw_colours(rng: random.Random) -> Colours:
    chosen, which, amount = rng.random(), rng.random(), rng.uniform(-1.0, 1.0)
    if chosen >= COLOUR_PROBABILITY:
        return Colours()
    return Colours(hue=amount * MAX_HUE) if which < 0.5 else Colours(gamma=1.0 + amount * MAX_GAMMA_CHANGE)


def _crop_around_face(record: ImageRecord, face: tuple[int, int, int, int], faces: tuple[float, float], share: float) -> ImageRecord:
    """Scaled so that the bucket's shorter side is `faces` (from, to) times the face; never past the edge, never scaled up beyond need."""
    if record.bucket is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.assign_buckets first")
    width, height = record.bucket
    min_scale = max(width / record.width, height / record.height)
    max_scale = max(1.0, min_scale)
    smallest = min(max_scale, max(min_scale, min(record.bucket) / (max(face[2:]) * faces[1])))
    largest = min(max_scale, max(smallest, min(record.bucket) / (max(face[2:]) * faces[0])))
    scale = smallest + (largest - smallest) * share
    resized = (max(width, int(record.width * scale + 0.5)), max(height, int(record.height * scale + 0.5)))
    left = min(max(0, round(face[0] * scale) - width // 2), resized[0] - width)
    top = min(max(0, round(face[1] * scale) - height // 2), resized[1] - height)
    return attrs.evolve(record, resized=resized, crop=(left, top, width, height))
