"""Options of pictures: parsing, and which of them vary each time, so that latents cannot be cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

VARYING_OPTIONS = ("color_aug", "random_crop", "face_crop_aug_range")
"""Options with which a picture is different each time it is seen."""


def parse_face_crop_range(text: str) -> tuple[float, float] | None:
    """(smallest, largest) crop as multiples of the face's size; None if `text` is not such a range."""
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        return None
    return (low, high) if 1.0 <= low <= high else None


def varying_options(data: DataConfig) -> list[str]:
    """Names of the enabled options with which pictures are different each time."""
    return [name for name in VARYING_OPTIONS if getattr(data, name)]


def parse_crop(text: str) -> tuple[str, tuple[float, float, float, float]] | None:
    """(key, (left, top, right, bottom) as shares) of "key=left,top,right,bottom"; None if the format is wrong or the area empty."""
    key, sign, numbers = text.rpartition("=")
    try:
        left, top, right, bottom = (float(number) for number in numbers.split(","))
    except ValueError:
        return None
    is_inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    return (key, (left, top, right, bottom)) if sign and key and is_inside else None
