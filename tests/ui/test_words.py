"""The tab in both languages: nothing that it shows is without its Chinese."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from lora_trainer.messages import translations

from .words import templates

LATIN = re.compile(r"[A-Za-z]{2,}")
DATA = re.compile(
    r"mika|v1-5-pruned-emaonly|sks|SD 1\.x|epsilon|LoRA|U-Net|AdamW|Alpha|Rank|GB|MB|photo of.*|by the sea|in a café|"
    r"D:\\|photos|NUM|STRENGTH|lora|safetensors|jpg|txt|txt2img|X/Y/Z|Esc|TOML|seed|CLIP|cuda|float\d+|GPU|VAE|\d+e-\d+|SNR|Euler|DDIM|fp\d+|bf\d+|WebUI",
    re.IGNORECASE,
)


def test_every_text_of_the_javascript_has_its_chinese():
    known = translations("zh_CN")
    missing = sorted(f"{file}: {template}" for template, file in templates().items() if template not in known)
    assert missing == []


@pytest.mark.parametrize(
    ("step", "scenario"),
    [
        ("settings", "nofit"),
        ("settings", "interrupted"),
        ("train", "training"),
        ("train", "paused"),
        ("train", "resumed"),
        ("train", "failed"),
        ("compare", "grid"),
    ],
)
def test_a_chinese_page_shows_no_english_sentence(mika: Callable[..., Any], step: str, scenario: str):
    page = mika(step, scenario, lang="zh-CN")
    page.wait_for_timeout(800)
    shown = page.evaluate(
        """() => {
            const seen = [];
            const walk = document.createTreeWalker(document.querySelector('.lt-app'), NodeFilter.SHOW_TEXT);
            while (walk.nextNode()) {
                const parent = walk.currentNode.parentElement;
                const served = '.lt-language, .lt-log, .lt-health, .lt-failedbody, .lt-why, .lt-changes, .lt-wizardnotes, '
                    + '.lt-notes, .lt-because';
                if (parent.checkVisibility() && !parent.closest(served)) seen.push(walk.currentNode.textContent);
            }
            return seen;
        }"""
    )
    assert len(shown) > 40
    assert [text for text in shown if LATIN.search(DATA.sub("", text))] == []


@pytest.mark.parametrize(("lang", "tools"), [("en", "Tools"), ("zh-CN", "工具")])
def test_basic_says_what_it_means_without_words_of_the_trade(mika: Callable[..., Any], lang: str, tools: str):
    page = mika("settings", lang=lang)
    texts = []
    for step in ("pictures", "captions", "settings"):
        page.evaluate("step => LoraTrainer.goToStep(step)", step)
        texts.append(page.locator(f".lt-{step}").inner_text())
    button = page.locator(".lt-header button").filter(has_text=tools).first
    button.click()
    texts.append(page.locator(".lt-tools").inner_text())
    assert all(len(text) > 20 for text in texts) and len(texts[2]) > 200
    trade = re.compile(r"epsilon|no mark of|Energy to keep|N_name|overwrite (to|=)|save\.\w+|regularisation, dataset", re.IGNORECASE)
    assert [match.group(0) for text in texts for match in trade.finditer(text)] == []


def test_the_host_s_language_is_taken_where_the_address_names_none(open_page: Callable[..., Any], made_up: tuple[str, Any]):
    address, _ = made_up
    context = {"locale": "zh-CN"}
    assert open_page(address, **context).locator("#lora_trainer_step_train .lt-stepname").inner_text() == "训练"
    assert open_page(f"{address}?__lang=en", **context).locator("#lora_trainer_step_train .lt-stepname").inner_text() == "Train"


def test_language_is_switched_in_the_tab_kept_and_the_form_with_it(mika: Callable[..., Any]):
    page = mika("settings", lang="en")
    page.get_by_role("button", name="简体中文").click()
    step = page.locator("#lora_trainer_step_train .lt-stepname")
    page.wait_for_function("document.querySelector('#lora_trainer_step_train .lt-stepname').innerText === '训练'")
    assert page.locator(".lt-app").get_attribute("lang") == "zh-CN"
    assert page.evaluate("LoraTrainer.value('save.output_name')") == "mika"
    page.wait_for_function("LoraTrainer.cache.plan !== null")
    label = page.evaluate("document.querySelector('[data-path=\"network.dim\"] label').innerText")
    assert label.startswith("网络维度")  # the server's words too
    page.evaluate("LoraTrainer.set({'network.dim': 7})")
    assert page.locator('[data-path="network.dim"] input').input_value() == "7"
    page.reload()
    page.wait_for_selector("[data-ready=true]", timeout=120_000)
    assert step.inner_text() == "训练"  # although the address names English
    page.get_by_role("button", name="English").click()
    page.wait_for_function("document.querySelector('#lora_trainer_step_train .lt-stepname').innerText === 'Train'")
    assert page.locator(".lt-header").count() == 1


def test_optimizers_that_are_not_installed_are_folded_away(mika: Callable[..., Any]):
    page = mika("settings")
    page.evaluate("""() => {
        const option = LoraTrainer.options.get('optimizer.type');
        option.facts = {...option.facts, CAME: {...option.facts.CAME, missing: 'came-pytorch'}, LAMB: {...option.facts.LAMB, missing: 'x'}};
        LoraTrainer.emit('options');
    }""")
    list_ = page.locator('[data-path="optimizer.type"] select')
    texts = lambda: list_.locator("option").all_inner_texts()  # noqa: E731
    assert "2 more, not installed…" in texts() and not [text for text in texts() if "(not installed)" in text]
    list_.select_option("2 more, not installed…")
    assert [text for text in texts() if "(not installed)" in text] == ["CAME (not installed)", "LAMB (not installed)"]
    assert list_.input_value() == "AdamW" and page.evaluate("LoraTrainer.value('optimizer.type')") == "AdamW"
    list_.select_option("CAME")
    assert page.evaluate("LoraTrainer.value('optimizer.type')") == "CAME"
