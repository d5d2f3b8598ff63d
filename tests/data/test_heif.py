"""A phone's HEIC pictures: read where pillow-heif is installed, else named with the command that installs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_trainer import install_command as module
from lora_trainer.config.build import build
from lora_trainer.data.pictures import heif
from lora_trainer.data.pictures.image_header import read_header
from lora_trainer.data.sources.assemble import assemble
from lora_trainer.data.sources.blueprint import resolve_dataset
from lora_trainer.install_command import install_command

START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    Image.init()  # else Pillow would add its formats to the copy, once
    monkeypatch.setattr(heif, "can_read", lambda: False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(Image, "EXTENSION", {ending: name for ending, name in Image.registered_extensions().items() if name != "HEIF"})


@pytest.mark.usefixtures("without_package")
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_2.heif", "IMG_3.hif"])
def test_without_the_package_the_file_is_listed_with_the_command(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(START)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    records = {
        record.path.name: record for record in assemble(resolve_dataset(build({"data": {"train_data_dir": str(tmp_path)}}).data)).records
    }
    assert not records[name].usable and "pip install --no-deps" in records[name].reason.text()
    assert records["a.png"].usable


@pytest.mark.usefixtures("without_package")
def test_a_phones_picture_that_calls_itself_jpg_is_named_as_what_it_is(tmp_path: Path):
    (tmp_path / "IMG_1.jpg").write_bytes(START)
    assert "pillow-heif" in read_header(tmp_path / "IMG_1.jpg").reason.text()
    (tmp_path / "film.jpg").write_bytes(b"\0\0\0\x18ftypmp42")
    assert "not a picture" in read_header(tmp_path / "film.jpg").reason.text()


@pytest.mark.parametrize(
    ("pillow", "wanted"), [("9.5.0", "0.16.0"), ("10.2.0", "0.22.0"), ("11.0.0", "0.22.0"), ("11.1.0", "1.3.0"), ("12.2.0", "1.3.0")]
)
def test_the_command_names_a_version_that_accepts_this_pillow_and_that_no_host_undoes(
    pillow: str, wanted: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "version", lambda name: {"Pillow": pillow}[name])
    assert install_command("pillow-heif").endswith(f'-m pip install --no-deps "pillow-heif=={wanted}"')
