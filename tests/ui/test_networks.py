"""The network's fields on the real page: what they say comes from the server's plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import Server

Page = Callable[..., Any]
pytest.importorskip("playwright")


def opened(real: Server, open_page: Page, toy_pictures: Path, **values: Any) -> Any:
    page = open_page(f"{real.address}?__lang=en", ready=False)
    page.wait_for_selector("[data-ready=true]", timeout=120_000)
    folder = str(toy_pictures / "crescent" / "train")
    page.evaluate("values => LoraTrainer.set(values, 'the test')", {"data.train_data_dir": folder, "data.resolution": 64, **values})
    page.evaluate("LoraTrainer.showOption('network.exclude')")  # only among all settings
    page.wait_for_function("LoraTrainer.cache.plan && LoraTrainer.cache.plan.network", timeout=120_000)
    return page


def test_each_pattern_tells_how_many_layers_it_hits_and_the_file_its_size(real: Server, open_page: Page, toy_pictures: Path):
    page = opened(real, open_page, toy_pictures)
    field = page.locator('[data-path="network.exclude"]')
    before = page.evaluate("LoraTrainer.cache.plan.network.file_bytes")
    field.locator("textarea").fill("attn2\nfrobnicate")
    field.locator("textarea").blur()
    page.wait_for_function("Object.keys(LoraTrainer.cache.plan.network.patterns.exclude).length === 2", timeout=120_000)
    words = field.locator(".lt-hint").inner_text()
    assert re.search(r"attn2 hits \d+ layers", words) and "frobnicate hits no layer" in words
    assert page.evaluate("LoraTrainer.cache.plan.network.file_bytes") < before
    assert re.search(r"[\d.]+\s*[KM]B a file", page.locator('[data-path="network.dim"] .lt-hint').inner_text())


def test_a_field_shows_only_where_the_type_reads_it(real: Server, open_page: Page, toy_pictures: Path):
    page = opened(real, open_page, toy_pictures)
    shown = 'path => { const field = document.querySelector(`[data-path="${path}"]`); return Boolean(field) && !field.hidden; }'
    assert not page.evaluate(shown, "network.factor")
    page.evaluate("LoraTrainer.set({ 'network.type': 'lokr' })")
    page.wait_for_function(f"({shown})('network.factor')", timeout=120_000)
    page.evaluate("LoraTrainer.set({ 'network.type': 'full' })")
    page.wait_for_function(f"!({shown})('network.dim')", timeout=120_000)
    assert "difference" in page.locator('[data-path="network.type"] .lt-hint').inner_text()
