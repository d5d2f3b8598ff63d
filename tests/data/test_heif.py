"""A phone's HEIC pictures: read where pillow-heif is installed, else named with the command that installs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.config.build import build
from lora_trainer.data.pictures import heif
from lora_trainer.data.pictures.image_header import read_header
from lora_trainer.data.pictures.images import open_picture
from lora_trainer.data.sources.assemble import assemble
from lora_trainer.data.sources.blueprint import resolve_dataset
from lora_trainer.data.sources.folders import is_picture

START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.skipif(heif.can_read(), reason="pillow-heif is installed")
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_2.heif", "IMG_3.hif"])
def test_without_the_package_the_file_is_listed_with_the_command(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(START)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    records = {
        record.path.name: record for record in assemble(resolve_dataset(build({"data": {"train_data_dir": str(tmp_path)}}).data)).records
    }
    assert not records[name].usable and "pip install --no-deps" in records[name].reason.text()
    assert records["a.png"].usable


@pytest.mark.skipif(heif.can_read(), reason="pillow-heif is installed")
def test_a_phones_picture_that_calls_itself_jpg_is_named_as_what_it_is(tmp_path: Path):
    (tmp_path / "IMG_1.jpg").write_bytes(START)
    assert "pillow-heif" in read_header(tmp_path / "IMG_1.jpg").reason.text()
    (tmp_path / "film.jpg").write_bytes(b"\0\0\0\x18ftypmp42")
    assert "not a picture" in read_header(tmp_path / "film.jpg").reason.text()


@pytest.mark.parametrize(
    ("pillow", "wanted"),
    [
        ("9.5.0", "pillow-heif<0.17"),
        ("10.2.0", "pillow-heif<1"),
        ("11.0.0", "pillow-heif<1"),
        ("11.1.0", "pillow-heif"),
        ("12", "pillow-heif"),
    ],
)
def test_the_command_names_a_version_that_takes_this_pillow(pillow: str, wanted: str, monkeypatch):
    monkeypatch.setattr("lora_trainer.install_command.version", lambda name: {"Pillow": pillow}[name])
    assert f' -m pip install --no-deps "{wanted}"' in heif.unreadable_reason("HEIC").text()


@pytest.mark.skipif(not heif.can_read(), reason="pillow-heif is not installed")
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_2.heif", "IMG_3.jpg"])
def test_with_the_package_it_is_a_picture_like_any_other(tmp_path: Path, name: str):
    picture = Image.new("RGB", (96, 64), (200, 40, 40))
    picture.save(tmp_path / "x.heic", quality=95)
    (tmp_path / "x.heic").rename(tmp_path / name)
    header = read_header(tmp_path / name)
    assert is_picture(name) and (header.width, header.height, header.reason) == (96, 64, None)
    assert sum(abs(a - b) for a, b in zip(open_picture(tmp_path / name).getpixel((50, 30)), (200, 40, 40), strict=True)) < 24
