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
                const served = '.lt-log, .lt-health, .lt-failedbody, .lt-why, .lt-changes, .lt-wizardnotes, .lt-notes, .lt-because';
                if (parent.checkVisibility() && !parent.closest(served)) seen.push(walk.currentNode.textContent);
            }
            return seen;
        }"""
    )
    assert len(shown) > 40
    assert [text for text in shown if LATIN.search(DATA.sub("", text))] == []


def test_the_host_s_language_is_taken_where_the_address_names_none(open_page: Callable[..., Any], made_up: tuple[str, Any]):
    address, _ = made_up
    context = {"locale": "zh-CN"}
    assert open_page(address, **context).locator("#lora_trainer_step_train .lt-stepname").inner_text() == "训练"
    assert open_page(f"{address}?__lang=en", **context).locator("#lora_trainer_step_train .lt-stepname").inner_text() == "Train"
