"""Pictures to test with, drawn here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_trainer.data.records import ImageRecord

# pillow-heif is installed on the older leg only (requirements-test.txt)
collect_ignore = ["test_heif_read.py"] if sys.version_info >= (3, 11) else []


@pytest.fixture
def draw(tmp_path) -> Callable[..., Path]:
    """Writes a picture whose left upper quarter is red, the rest blue, with a caption if one is given; returns its path."""

    def write(name: str, size: tuple[int, int] = (64, 48), caption: str | None = None, *, mode: str = "RGB", **save) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        quartered(size).convert(mode).save(path, **save)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return write


def quartered(size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return picture


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """A soft, colourful picture that no other seed gives."""
    cells = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def record(key: str = "a.png", **known) -> ImageRecord:
    """A record without a file."""
    values = {"width": 64, "height": 64, "bucket": (64, 64), **known}
    if "caption" in values:
        values.setdefault("caption_path", Path(key).with_suffix(".txt"))
    return ImageRecord(Path(key), key, **values)
