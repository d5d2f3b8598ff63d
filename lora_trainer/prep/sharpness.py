"""Sharpness of a picture, independent of its contrast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lora_trainer.data.pictures.images import open_small
from lora_trainer.errors import DatasetError

SIDE = 512
LIMIT = 0.008
"""Below this a picture may be blurred: drawn edges softened by 2 of 512 pixels give 0.005 at most, sharp ones 0.1 and more."""
RELATIVE_LIMIT = 0.25
"""A picture only counts as blurred if it is also below this fraction of the set's median: a soft style is intended."""


def sharpness(path: Path) -> float | None:
    """Variance of the Laplacian over the variance of brightness, at 512 pixels on the longer side; None for flat or unreadable pictures."""
    try:
        picture = open_small(path, SIDE * 2).convert("L")
    except DatasetError:
        return None
    scale = SIDE / max(picture.size)
    if scale < 1:
        picture = picture.resize((max(3, round(picture.width * scale)), max(3, round(picture.height * scale))), Image.Resampling.BOX)
    grey = np.asarray(picture, dtype=np.float32)
    contrast = float(grey.var())
    if contrast < 4.0 or min(grey.shape) < 3:
        return None
    middle = grey[1:-1, 1:-1]
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(edges.var()) / contrast


def blurred(values: dict[str, float]) -> list[str]:
    """Keys of blurred pictures, by absolute and relative sharpness; the worst first."""
    if not values:
        return []
    middle = float(np.median(list(values.values())))
    limit = LIMIT if len(values) < 4 else min(LIMIT, RELATIVE_LIMIT * middle)
    return sorted((key for key, value in values.items() if value < limit), key=lambda key: values[key])
