"""A learning rate from a short run: the first rest of what Prodigy finds."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from lora_trainer.config.build import build
from lora_trainer.control import Control
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.wizard.lr_finder import find_plateau, find_rate, search_config
from tests.train.runs import small_config


def test_the_first_rest_is_taken_and_not_the_highest():
    grows = [1e-6 * 2**step for step in range(8)]
    curve = list(enumerate([*grows, *[1.28e-4] * 12, *[9e-4] * 10], start=1))
    found = find_plateau(curve)
    assert found.has_plateau and found.rate == pytest.approx(1.28e-4)


def test_an_estimate_that_still_grows_is_told_as_such():
    found = find_plateau([(step, 1e-6 * 1.3**step) for step in range(1, 41)])
    assert not found.has_plateau and found.rate == pytest.approx(1e-6 * 1.3**40)
    assert find_plateau([]).rate == 0.0


def test_a_part_that_is_not_trained_has_no_rate(tmp_path: Path):
    config = build({"optimizer": {"text_encoder_lr": 0}})
    assert search_config(config, tmp_path, 10).optimizer.text_encoder_lr == 0
    found = attrs.evolve(find_plateau([(1, 1e-6)]), rate=3.21e-4).to_json(config)
    assert (found["unet_lr"], found["text_encoder_lr"]) == (3.2e-4, 0.0)


def test_a_rate_is_found_for_the_small_model_and_nothing_is_left_behind(tmp_path: Path):
    config = small_config(tmp_path / "run", data__batch_size=4)
    found = find_rate(config, StandaloneHost(tmp_path), Control(), steps=30)
    assert len(found.curve) == 30 and 1e-5 < found.rate < 1e-2
    assert not (tmp_path / "run").exists()
