"""A learning rate that is found on the user's own pictures, from the field to the field."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import Server

Page = Callable[..., Any]
pytest.importorskip("playwright")


@pytest.mark.slow
def test_a_rate_is_looked_for_shown_and_set(real: Server, open_page: Page, toy_pictures: Path):
    page = open_page(f"{real.address}?__lang=en", ready=False)
    page.wait_for_selector("[data-ready=true]", timeout=120_000)
    values = {"data.train_data_dir": str(toy_pictures / "crescent" / "train"), "data.trigger_word": "sks", "data.batch_size": 4}
    page.evaluate("values => LoraTrainer.set(values, 'the test')", values)
    page.evaluate("() => { LoraTrainer.noteSuggestions('kept'); LoraTrainer.goToStep('settings'); }")
    field = page.locator('[data-path="optimizer.unet_lr"]')
    field.get_by_text("Find it on these pictures").click()
    field.get_by_text(re.compile(r"Looking for a rate: step \d+ of 100")).wait_for(timeout=120_000)
    page.get_by_text("A learning rate is being looked for").wait_for()
    field.get_by_text(re.compile("Found on these pictures: .+ / .+")).wait_for(timeout=240_000)
    field.get_by_text("Set it").click()
    unet, text = page.evaluate("[LoraTrainer.value('optimizer.unet_lr'), LoraTrainer.value('optimizer.text_encoder_lr')]")
    assert 1e-6 < text < unet < 1e-1
    assert field.locator("input").input_value() and field.get_by_text("Set it").count() == 0
    page.evaluate("LoraTrainer.set({ 'optimizer.type': 'Lion' })")
    field.get_by_text("Set it").wait_for()  # a third of it for Lion
    page.evaluate("LoraTrainer.set({ 'optimizer.type': 'Prodigy' })")
    page.wait_for_function("!document.querySelector('[data-path=\"optimizer.unet_lr\"]').innerText.includes('Find it')")
    assert page.evaluate("LoraTrainer.cache.runs.length") == 0
