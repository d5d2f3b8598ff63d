"""The model in the tab: what it is and why, one that is in no list, and the Hub's token, which no browser keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .made_up import World

Page = Callable[..., Any]
TOKEN = "hf_onlyForTheHub"


def test_the_chosen_model_is_named_with_what_it_is_and_why(mika: Page):
    page = mika("settings")
    field = page.locator('[data-path="model.pretrained_model_name_or_path"]')
    assert "SD 1.x · 512 × 512: the WebUI's configuration" in field.inner_text()
    field.locator("select").select_option(label="another file, folder or Hub model…")
    field.get_by_label("Path, or owner/name of a Hub's model").fill("someone/noobai-v")
    field.get_by_label("Path, or owner/name of a Hub's model").press("Enter")
    field.get_by_text("SDXL · v-prediction · zero terminal SNR · 1024 × 1024: the checkpoint's key v_pred").wait_for()
    assert page.evaluate("LoraTrainer.config().model.pretrained_model_name_or_path") == "someone/noobai-v"


def test_the_training_size_is_the_chosen_models_own_until_the_user_says_another(mika: Page):
    page = mika("settings")
    size = page.locator('[data-path="data.resolution"] input')
    choose = "value => LoraTrainer.set({ 'model.pretrained_model_name_or_path': value })"
    assert size.input_value() == "512 × 512"
    page.evaluate(choose, "someone/noobai-v")
    page.wait_for_function("LoraTrainer.config().data.resolution === 1024")
    assert size.input_value() == "1024 × 1024"
    size.fill("768")
    size.press("Tab")
    page.evaluate(choose, "")
    page.get_by_text("SD 1.x · 512 × 512").wait_for()
    assert page.evaluate("LoraTrainer.config().data.resolution") == 768


def test_the_token_is_sent_with_the_settings_and_kept_by_no_browser(mika: Page, made_up: tuple[str, World]):
    page = mika("settings")
    page.get_by_placeholder("Search all settings").fill("hub_token")
    field = page.locator('[data-path="model.hub_token"] input')
    assert field.get_attribute("type") == "password"
    field.fill(TOKEN)
    field.press("Tab")
    page.evaluate("LoraTrainer.set({ 'network.dim': 24 })")
    page.wait_for_function("Object.values(localStorage).some((text) => text.includes('\"network.dim\":24'))")
    assert page.evaluate("LoraTrainer.config().model.hub_token") == TOKEN
    assert not page.evaluate("token => JSON.stringify({ ...localStorage, ...sessionStorage }).includes(token)", TOKEN)
    page.reload()
    page.wait_for_function("window.LoraTrainer && LoraTrainer.options && LoraTrainer.options.size")
    assert page.evaluate("[LoraTrainer.value('network.dim'), LoraTrainer.value('model.hub_token')]") == [24, ""]
