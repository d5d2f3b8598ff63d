"""A phone's HEIC pictures with pillow-heif, which A1111's and Forge Neo's environments have, and Forge's not."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.data.pictures import heif
from lora_trainer.data.pictures.image_header import read_header
from lora_trainer.data.pictures.images import open_picture
from lora_trainer.data.sources.folders import is_picture


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_2.heif", "IMG_3.jpg"])
def test_with_the_package_it_is_a_picture_like_any_other(tmp_path: Path, name: str):
    assert heif.can_read()
    picture = Image.new("RGB", (96, 64), (200, 40, 40))
    picture.save(tmp_path / "x.heic", quality=95)
    (tmp_path / "x.heic").rename(tmp_path / name)
    header = read_header(tmp_path / name)
    assert is_picture(name) and (header.width, header.height, header.reason) == (96, 64, None)
    assert sum(abs(a - b) for a, b in zip(open_picture(tmp_path / name).getpixel((50, 30)), (200, 40, 40), strict=True)) < 24
