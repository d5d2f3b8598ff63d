"""Suggested rates and schedules are those that the chosen optimizer wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_trainer.config import effective
from lora_trainer.config.checks.learning_rate_checks import learning_rate_warnings
from lora_trainer.wizard.advise import suggest
from tests.wizard.conftest import config_for


@pytest.mark.parametrize(
    ("name", "rate", "schedule"),
    [("AdamW8bit", 1.7e-4, "cosine"), ("Lion", 5.2e-5, "cosine"), ("Prodigy", 1.0, "cosine"), ("AdamWScheduleFree", 8.7e-4, "constant")],
)
def test_rate_and_schedule_are_the_familys(pictures: Callable[[int], Path], name: str, rate: float, schedule: str) -> None:
    config = config_for(pictures(22), optimizer={"type": name})
    found = suggest(config, subject="object", vram_gb=24, typed=())
    after = found.config_after
    assert after.schedule.type == schedule
    assert effective.unet_lr(after) == pytest.approx(rate * (2 / 3**0.5 if name != "Prodigy" else 1), rel=0.05)
    assert effective.text_encoder_lr(after) == pytest.approx(effective.unet_lr(after) * (1 if name == "Prodigy" else 0.5), rel=0.05)
    assert not any("_lr" in path or "learning_rate" in path or path == "schedule.type" for path, _ in learning_rate_warnings(after, 4))
    assert suggest(after, subject="object", vram_gb=24, typed=()).changes == ()
