"""One number for one thing: what the page says twice is the same, and what is not so is not said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .made_up import World

Page = Callable[..., Any]
pytest.importorskip("playwright")

SET_RUN = "run => { Object.assign(LoraTrainer.cache.status.run, run); LoraTrainer.emit('status', {}); }"
PILL = "device => LoraTrainer.pillWords({ state: 'paused', kind: 'train', step: 5, total_steps: 10, device }).join(' ')"


@pytest.mark.parametrize(("device", "freed"), [("cuda:0", True), ("NVIDIA GeForce RTX 4090", True), ("CPU", False), ("cpu", False)])
def test_only_a_pause_on_a_graphics_card_frees_it(mika: Page, device: str, freed: bool):
    page = mika("train", "paused")
    assert ("GPU is free" in page.evaluate(PILL, device)) is freed


def test_the_pill_and_the_grid_count_the_same_pictures_and_the_same_time(mika: Page, made_up: tuple[str, World]):
    page = mika("compare", "halfgrid")
    page.evaluate("LoraTrainer.openRun('mika')")
    page.wait_for_function("document.querySelectorAll('.lt-cell img').length === 23", timeout=120_000)
    page.evaluate("LoraTrainer.poll = async () => null")
    page.evaluate(SET_RUN, {"phase": "rendering", "done": 24, "total": 50, "seconds_left": 140})
    for place in (".lt-pill", ".lt-gridcount"):
        page.locator(place, has_text="24 of 50").filter(has_text="2 min left").wait_for(timeout=120_000)
    page.evaluate(SET_RUN, {"phase": "ranking", "done": 3, "total": 7, "seconds_left": None})
    for place in (".lt-pill", ".lt-gridcount"):
        page.locator(place, has_text="3 of 7").filter(has_not_text="left").wait_for(timeout=120_000)
    assert "ranking" in page.locator(".lt-pill").inner_text() and "Ranking" in page.locator(".lt-gridcount").inner_text()


def test_an_ended_run_has_the_speed_of_all_its_steps(mika: Page, made_up: tuple[str, World]):
    page = mika("train", "finished")
    page.wait_for_function("LoraTrainer.runData(LoraTrainer.shownId()).seconds.length > 100")
    page.evaluate("LoraTrainer.poll = async () => null")
    page.evaluate(
        "() => { const data = LoraTrainer.runData(LoraTrainer.shownId());"
        " data.seconds = data.seconds.map((one, index, all) => (index < all.length / 2 ? 1 : 3));"
        " LoraTrainer.cache.status.run.speed = null; LoraTrainer.emit('run', data.id); }"
    )
    tile = page.locator(".lt-tile", has_text="Speed")
    tile.get_by_text("2.0").wait_for(timeout=120_000)
    page.evaluate(SET_RUN, {"speed": 0.55})
    tile.get_by_text("0.55").wait_for(timeout=120_000)


@pytest.mark.parametrize(("total", "said"), [(1320, False), (1300, True)])
def test_epochs_times_steps_is_the_number_of_steps_or_the_last_epoch_ends_early(mika: Page, total: int, said: bool):
    page = mika("settings")
    page.evaluate(
        "total => { LoraTrainer.cache.plan = { ...LoraTrainer.cache.plan, epochs: 10, steps_per_epoch: 132, total_steps: total };"
        " LoraTrainer.emit('plan'); }",
        total,
    )
    assert ("the last one ends early" in page.locator(".lt-happens").inner_text()) is said


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"pictures": 18, "examples": "540"}, "18, with their repeats 540"),
        ({"pictures": 18, "examples": "18"}, "18"),
        ({"examples": "540"}, "540 with"),
    ],
)
def test_the_tools_count_pictures_and_not_their_repeats(mika: Page, facts: dict[str, Any], said: str):
    page = mika("settings")
    assert str(page.evaluate("facts => LoraTrainer.picturesWords(facts)", facts)).startswith(said)


def test_the_step_is_the_same_in_the_tile_the_stop_dialog_and_the_list_of_runs(mika: Page):
    page = mika("train", "training")
    page.wait_for_function("LoraTrainer.runData('mika').last && LoraTrainer.runData('mika').last.step === 766")
    page.evaluate("LoraTrainer.poll = async () => null")
    page.evaluate(SET_RUN, {"step": 0})  # the status comes later than the events
    page.locator(".lt-tile", has_text="Step").get_by_text("766").wait_for(timeout=120_000)
    assert "58" in page.locator(".lt-pill").inner_text()
    page.get_by_role("button", name="Stop…").click()
    page.get_by_text("The run is at step 766 of").wait_for(timeout=120_000)
    page.keyboard.press("Escape")
    page.locator(".lt-runbutton").click()
    page.locator('[data-run="mika"]').get_by_text("step 766 of").wait_for(timeout=120_000)
