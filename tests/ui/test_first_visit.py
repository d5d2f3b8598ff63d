"""The first visit of Settings: what is suggested is filled in, listed and taken back with one click; and no step is ticked unseen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from .made_up import World

Page = Callable[..., Any]
pytest.importorskip("playwright")

FORM = {"data.train_data_dir": "D:\\photos\\mika", "data.trigger_word": "sks mika", "data.class_tokens": "girl"}


def first(open_page: Page, made_up: tuple[str, World], typed: dict[str, Any] | None = None, lang: str = "en", **size: int) -> Any:
    page = open_page(f"{made_up[0]}?__lang={lang}&__scenario=idle", **size)
    page.evaluate("values => LoraTrainer.set(values)", {**FORM, **(typed or {})})
    page.wait_for_function("LoraTrainer.cache.pictures && LoraTrainer.cache.plan")
    return page


def to_settings(page: Any) -> None:
    page.keyboard.press("3")
    page.locator(".lt-applied").first.wait_for(timeout=120_000)


def wizards(world: World) -> int:
    return sum(path == "wizard" for _, path, _ in world.asked)


def test_suggestions_are_filled_in_at_the_first_visit_listed_and_undone_with_one_click(open_page: Page, made_up: tuple[str, World]):
    page = first(open_page, made_up)
    before = page.evaluate("LoraTrainer.state.values")
    to_settings(page)
    changed = page.evaluate("LoraTrainer.state.values")
    assert changed != before and page.evaluate("LoraTrainer.value('network.dim')") == 16
    assert page.locator(".lt-applied").count() >= 3
    assert "Without the suggested" not in page.locator(".lt-start").inner_text()
    page.get_by_role("button", name="Undo these").click()
    assert page.evaluate("LoraTrainer.state.values") == before
    page.locator(".lt-start", has_text="Without the suggested settings.").wait_for(timeout=120_000)
    page.reload()
    page.wait_for_selector("[data-ready=true]")
    page.locator(".lt-start", has_text="Without the suggested settings.").wait_for(timeout=120_000)
    assert page.locator(".lt-applied").count() == 0 and wizards(made_up[1]) == 1  # asked once, and not again after it was refused
    page.get_by_role("button", name="See them again").click()
    page.get_by_role("button", name="Use these").click()
    page.wait_for_function("!document.querySelector('.lt-start').innerText.includes('Without the suggested')")


def test_what_the_user_typed_stays_at_the_first_visit(open_page: Page, made_up: tuple[str, World]):
    page = first(open_page, made_up, {"network.dim": 64})
    to_settings(page)
    assert page.evaluate("LoraTrainer.value('network.dim')") == 64
    assert "that you typed stay" in page.locator(".lt-suggest").inner_text()


def test_a_cloned_run_keeps_its_settings(open_page: Page, made_up: tuple[str, World]):
    page = first(open_page, made_up)
    page.evaluate("LoraTrainer.useConfig({ data: { train_data_dir: 'D:\\\\other' }, network: { dim: 24 } })")
    page.keyboard.press("3")
    page.wait_for_timeout(1500)
    assert page.evaluate("LoraTrainer.value('network.dim')") == 24 and wizards(made_up[1]) == 0
    assert "Without the suggested" not in page.locator(".lt-start").inner_text()


def test_another_subject_is_suggested_for_at_the_next_visit_and_defaults_count_as_refused(open_page: Page, made_up: tuple[str, World]):
    page = first(open_page, made_up)
    to_settings(page)
    page.keyboard.press("1")
    page.get_by_role("radio", name="Style").click()
    page.keyboard.press("3")
    for _ in range(40):
        if wizards(made_up[1]) == 2:
            break
        page.wait_for_timeout(250)
    assert wizards(made_up[1]) == 2
    page.wait_for_function("!LoraTrainer.isSuggesting()")
    page.get_by_role("button", name="Defaults").click()
    page.locator(".lt-start", has_text="Without the suggested settings.").wait_for(timeout=120_000)


def test_a_step_has_no_tick_before_it_was_visited(open_page: Page, made_up: tuple[str, World]):
    page = first(open_page, made_up)
    tick = "#lora_trainer_step_{} .lt-good"
    assert page.locator(tick.format("captions")).count() == page.locator(tick.format("settings")).count() == 0
    page.keyboard.press("2")
    page.locator(tick.format("captions")).wait_for()
    assert page.locator(tick.format("settings")).count() == 0
    to_settings(page)
    page.locator(tick.format("settings")).wait_for(timeout=120_000)
    page.evaluate("LoraTrainer.useFolder('D:\\\\other')")  # other pictures: nobody has looked at them
    page.wait_for_function("!document.querySelector('#lora_trainer_step_captions .lt-good')")


@pytest.mark.parametrize(("lang", "width"), [("en", 390), ("zh_CN", 390), ("zh_CN", 1440)])
def test_the_list_fits_the_window_in_both_languages(open_page: Page, made_up: tuple[str, World], lang: str, width: int):
    page = first(open_page, made_up, lang=lang, width=width, height=844)
    page.evaluate("LoraTrainer.goToStep('settings')")
    page.locator(".lt-applied").first.wait_for(timeout=120_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("lang", ["en", "zh_CN"])
def test_on_a_phone_what_was_filled_in_stands_above_the_form_and_the_plan_below_it(open_page: Page, made_up: tuple[str, World], lang: str):
    page = first(open_page, made_up, lang=lang, width=390, height=844)
    page.evaluate("LoraTrainer.goToStep('settings')")
    page.locator(".lt-applied").first.wait_for(timeout=10_000)
    parts = (".lt-settings .lt-suggest", ".lt-settings .lt-left", ".lt-settings .lt-plan", ".lt-settings .lt-start")
    boxes = [page.locator(part).bounding_box() for part in parts]
    tops = [box["y"] for box in boxes]
    assert tops == sorted(tops) and all(box["y"] + box["height"] <= below["y"] for box, below in itertools.pairwise(boxes))
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
