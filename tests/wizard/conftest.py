"""Folders of pictures of every size, and configs that name them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig

MakeFolder = Callable[..., Path]
Sizes = tuple[tuple[int, int], ...]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """make_folder(count, name="pictures", sizes=((600, 600),)): the sizes in turn."""

    def make(count: int, name: str = "pictures", sizes: Sizes = ((600, 600),)) -> Path:
        return _filled(tmp_path / name, count, sizes)

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """pictures(count): a folder of square pictures that is made once. Do not change it."""

    @lru_cache
    def once(count: int) -> Path:
        return _filled(tmp_path_factory.mktemp("wizard") / f"pictures {count}", count, ((600, 600),))

    return once


def _filled(folder: Path, count: int, sizes: Sizes) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", sizes[number % len(sizes)], (number % 256, 0, 0)).save(folder / f"{number}.png")
    return folder


def config_for(folder: Path, **sections: Any) -> TrainConfig:
    """The config of that folder, with more sections as nested dicts."""
    data = {"train_data_dir": str(folder), "trigger_word": "sks", **sections.pop("data", {})}
    return build({"data": data, **sections})
