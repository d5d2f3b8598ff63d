"""What options of pictures must be together: what varies each time cannot be kept encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

VARYING = ("color_aug", "random_crop", "face_crop_aug_range")
"""Options that make a picture different each time it is seen."""


def face_range(text: str) -> tuple[float, float] | None:
    """Smallest and largest cut as multiples of the face's size; None when it is no such range."""
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        return None
    return (low, high) if 1.0 <= low <= high else None


def varying(data: DataConfig) -> list[str]:
    """Names of the options in use that make pictures different each time."""
    return [name for name in VARYING if getattr(data, name)]


def frame_of(text: str) -> tuple[str, tuple[float, float, float, float]] | None:
    """(key, shares of left, top, right, bottom) of "key=left,top,right,bottom"; None when it is not of this form or holds no area."""
    key, sign, numbers = text.rpartition("=")
    try:
        left, top, right, bottom = (float(number) for number in numbers.split(","))
    except ValueError:
        return None
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    return (key, (left, top, right, bottom)) if sign and key and inside else None
