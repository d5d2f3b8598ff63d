"""The tools for trained files on the real page: looked at, made smaller, its settings into the form, a wrong file refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_trainer import assets
from lora_trainer.network_tools.verify import verify
from tests.network_tools.made import WORDS, chosen, state_of, write
from tests.ui.conftest import Server

Page = Callable[..., Any]
pytest.importorskip("playwright")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = WORDS | {"ss_network_alpha": "2", "modelspec.trigger_phrase": "sks moon"}
    return write(tmp_path_factory.mktemp("lora") / "moon.safetensors", state_of(chosen(assets.toy_checkpoint())), words)


def opened(real: Server, open_page: Page, file: Path, lang: str = "en", **size: int) -> Any:
    page = open_page(f"{real.address}?__lang={lang}", **size)
    page.locator(".lt-header").get_by_role("button", name={"en": "Tools for trained files", "zh_CN": "训练文件工具"}[lang]).click()
    page.locator(".lt-tools input").first.fill(str(file))
    return page


def test_a_file_is_told_and_another_is_made_of_it(real: Server, open_page: Page, lora: Path):
    page = opened(real, open_page, lora)
    page.get_by_role("button", name="Look at it").click()
    seen, told = page.locator(".lt-tooltold").first, page.locator(".lt-tooltold").last
    seen.get_by_text("sks moon").wait_for(timeout=120_000)
    assert "216 fit the model, 0 do not" in seen.inner_text() and "Forge" in seen.inner_text()
    page.locator(".lt-tools").get_by_label("Rank", exact=True).fill("2")
    page.get_by_role("button", name="Make the new file").click()
    told.get_by_text("Written to").wait_for(timeout=120_000)
    assert lora.with_name("moon-r2.safetensors").is_file()
    page.get_by_role("button", name="Make the new file").click()
    told.get_by_text("exists already").wait_for(timeout=120_000)


def test_a_strength_that_webuis_do_not_read_is_told_and_the_converted_file_offered(real: Server, open_page: Page, tmp_path: Path):
    """Alphas in the header, as diffusers writes them."""
    state = {key: tensor for key, tensor in state_of(chosen(assets.toy_checkpoint())).items() if not key.endswith(".alpha")}
    header = {"lora_adapter_metadata": '{"unet.lora_alpha": 12, "text_encoder.lora_alpha": 12}'}
    page = opened(real, open_page, write(tmp_path / "sun.safetensors", state, header))
    page.get_by_role("button", name="Look at it").click()
    seen = page.locator(".lt-tooltold").first
    seen.get_by_text("at strength 1").wait_for(timeout=120_000)
    page.get_by_role("button", name="Make the file that WebUIs read").click()
    seen.get_by_text("Written to").wait_for(timeout=120_000)
    assert verify(tmp_path / "sun-kohya.safetensors").notes == ()


def test_train_again_brings_the_files_settings_into_the_form(real: Server, open_page: Page, lora: Path):
    page = opened(real, open_page, lora)
    page.get_by_role("button", name="Train again like this file").click()
    page.get_by_text("keys of").wait_for(timeout=120_000)
    assert page.evaluate("[LoraTrainer.value('network.dim'), LoraTrainer.value('data.trigger_word')]") == [4, "sks moon"]


@pytest.mark.parametrize("lang", ["en", "zh_CN"])
def test_layers_that_differ_by_rounding_alone_are_counted_and_left_out_where_that_is_ticked(
    real: Server, open_page: Page, tmp_path: Path, lang: str
):
    """A checkpoint in float32 against its own bf16 copy, one layer of which was trained."""
    state = load_file(assets.toy_checkpoint())
    trained = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    save_file({key: tensor.float() * 1.001 for key, tensor in state.items()}, tmp_path / "base.safetensors")
    tuned = {key: (tensor.float() * 1.001 + (0.5 if key == trained else 0)).bfloat16() for key, tensor in state.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    page = opened(real, open_page, tmp_path / "base.safetensors", lang, width=390, height=844)
    words = {
        "en": ("Extract", "Checkpoint after training", "Leave out layers", "Make the new file", "were left out"),
        "zh_CN": ("提取", "训练后的大模型", "略过仅因舍入而不同的层", "生成新文件", "已略过"),
    }[lang]
    tools, told = page.locator(".lt-tools"), page.locator(".lt-tooltold").last
    tools.get_by_text(words[0], exact=True).first.click()
    tools.get_by_label(words[1]).fill(str(tmp_path / "tuned.safetensors"))
    box = tools.get_by_label(words[2])
    assert not box.is_checked() and page.evaluate("document.documentElement.scrollWidth <= 390")
    box.check()
    page.get_by_role("button", name=words[3]).click()
    told.get_by_text(words[4]).wait_for(timeout=60_000)
    written = load_file(tmp_path / "base-extracted.safetensors")
    assert {key.partition(".")[0] for key in written} == {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"}


def test_a_wrong_file_is_refused_in_words_on_a_narrow_chinese_page(real: Server, open_page: Page, tmp_path: Path):
    (tmp_path / "bad.safetensors").write_bytes(b"")
    page = opened(real, open_page, tmp_path / "bad.safetensors", lang="zh_CN", width=390, height=800)
    page.get_by_role("button", name="查看").click()
    page.locator(".lt-tooltold .lt-problem").wait_for(timeout=120_000)
    assert page.evaluate("document.documentElement.scrollWidth <= 390")
