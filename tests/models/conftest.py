"""Small random checkpoints of every family: as many layers as the released models have, and next to no arithmetic in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import pytest
import torch

from benchmarks import random_checkpoint
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource

FAMILIES = ("sd1", "sd2", "sdxl")
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> its small random checkpoint, marked as predicting the noise where nothing else tells."""
    folder = tmp_path_factory.mktemp("random")

    @cache
    def made(family: str) -> Path:
        path = folder / f"{family}.safetensors"
        random_checkpoint.write(path, random_checkpoint.SHAPES[family][1], torch.float32)
        if family == "sd2":
            path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "eps"\n', encoding="utf-8")
        return path

    return made


@pytest.fixture(scope="session")
def bundle_of(checkpoint: Callable[[str], Path]) -> Callable[[str], ModelBundle]:
    """Family -> its small model. Leave it as it is."""
    return lru_cache(maxsize=None)(lambda family: load(FileSource(checkpoint(family)), CPU))
