"""What SDXL is told of a picture's sizes: as sd-scripts says it of picture and group, and true to the pixels that are cut off."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from lora_trainer.config.schema import DataConfig
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.cache.latent_cache import to_pixels
from lora_trainer.data.pictures.images import crop_to_bucket
from lora_trainer.data.records import ImageRecord
from lora_trainer.train.inputs.examples import sizes_of

AT_1024 = DataConfig(resolution=1024, min_bucket_reso=512, max_bucket_reso=2048)
SD_SCRIPTS = [
    ((1024, 1024), (1024, 1024), (1024, 1024), (0, 0)),
    ((1600, 900), (1344, 768), (1365, 768), (6, 0)),
    ((900, 1600), (768, 1344), (768, 1365), (0, 6)),
    ((1000, 1500), (832, 1216), (832, 1248), (0, 10)),
    ((3000, 2000), (1216, 832), (1248, 832), (10, 0)),
    ((800, 800), (1024, 1024), (1024, 1024), (0, 0)),
    ((1234, 777), (1280, 768), (1280, 806), (0, 30)),
    ((640, 1700), (640, 1600), (640, 1700), (0, 18)),
    ((1344, 768), (1344, 768), (1344, 768), (0, 0)),
]
"""Picture, group, what it is resized to (width, height each), and top and left as sd-scripts tells them.

Its top and left are the borders of a picture that lies whole inside the group, on the side where nothing is cut off: a mix-up, which
ours do not repeat. Where they are 0 there is no cut, and all six numbers are the same.
"""


def placed(size: tuple[int, int]) -> ImageRecord:
    return assign_buckets([ImageRecord(Path("x"), "x", *size)], AT_1024)[0]


@pytest.mark.parametrize(("size", "bucket", "resized", "told"), SD_SCRIPTS)
def test_picture_and_group_are_told_as_sd_scripts_tells_them(size, bucket, resized, told):
    record = placed(size)
    assert (record.bucket, record.resized) == (bucket, resized)
    height, width, top, left, target_height, target_width = sizes_of(record, False)
    assert (height, width, target_height, target_width) == (size[1], size[0], bucket[1], bucket[0])
    assert ((top, left) == (0, 0)) is (told == (0, 0))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("size", [size for size, *_ in SD_SCRIPTS])
def test_top_and_left_are_where_the_first_pixel_stood_in_the_resized_picture(size, flipped):
    record = placed(size)
    width, height = record.resized
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    numbered = Image.fromarray(np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], axis=-1).astype(np.uint8))
    shown = crop_to_bucket(numbered, attrs.evolve(record, width=width, height=height))
    red, green, blue = ((to_pixels(np.asarray(shown), flipped)[0, :, 0, 0] + 1) * 127.5).round().int().tolist()
    column, row = red + 256 * (blue // 16), green + 256 * (blue % 16)
    _, _, top, left, *_ = sizes_of(record, flipped)
    assert (top, left) == (row, width - 1 - column if flipped else column)
