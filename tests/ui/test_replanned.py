"""The plan is that of now: planned anew when a run ends, another window changes something, or the step is visited again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .made_up import World

Page = Callable[..., Any]
pytest.importorskip("playwright")

STATUS = """status => {
    const before = LoraTrainer.cache.status;
    LoraTrainer.poll = async () => null;
    LoraTrainer.cache.status = { ...before, ...status };
    LoraTrainer.emit('status', { before });
}"""
RUN = {"id": "other", "name": "other", "kind": "train", "state": "training", "step": 1, "total_steps": 9, "outcome": None}


def count(world: World, path: str) -> int:
    return sum(at == path for _, at, _ in world.asked)


def grows(page: Any, world: World, path: str, above: int) -> bool:
    """Whether the page asks again; a slow machine has time for it."""
    for _ in range(40):
        if count(world, path) > above:
            return True
        page.wait_for_timeout(250)
    return False


def quiet(page: Any, world: World) -> dict[str, int]:
    page.evaluate(STATUS, {})
    page.wait_for_timeout(900)
    return {path: count(world, path) for path in ("check", "pictures")}


@pytest.mark.parametrize(
    ("status", "asks"),
    [
        ({"run": RUN}, {"check"}),
        ({"run": {**RUN, "state": "finished", "outcome": "finished"}}, {"check"}),
        ({"model": {"title": "another", "trainable": True}}, {"check"}),
        ({"edits": 7}, {"check", "pictures"}),
        ({"windows": 3}, set()),
    ],
)
def test_what_changed_elsewhere_is_planned_anew(mika: Page, made_up: tuple[str, World], status: dict[str, Any], asks: set[str]):
    page = mika("settings")
    before = quiet(page, made_up[1])
    page.evaluate(STATUS, status)
    for path in asks:
        assert grows(page, made_up[1], path, before[path])
    page.wait_for_timeout(1000)
    assert {path for path, number in before.items() if count(made_up[1], path) > number} == asks


def test_progress_of_a_run_is_not_planned_anew_but_its_end_is(mika: Page, made_up: tuple[str, World]):
    page = mika("settings")
    page.evaluate(STATUS, {"run": RUN})
    before = quiet(page, made_up[1])
    page.evaluate(STATUS, {"run": {**RUN, "step": 2}})
    page.wait_for_timeout(900)
    assert count(made_up[1], "check") == before["check"]
    page.evaluate(STATUS, {"run": {**RUN, "step": 9, "state": "finished", "outcome": "finished"}})
    assert grows(page, made_up[1], "check", before["check"])


def test_a_visit_of_the_settings_plans_anew(mika: Page, made_up: tuple[str, World]):
    page = mika("pictures")
    before = quiet(page, made_up[1])
    page.evaluate("LoraTrainer.goToStep('settings')")
    assert grows(page, made_up[1], "check", before["check"])


def test_the_time_of_a_grid_is_an_estimate_until_a_picture_was_measured_here(mika: Page, made_up: tuple[str, World]):
    page = mika("compare", "finished")
    page.evaluate("LoraTrainer.openRun('mika')")
    words = page.locator(".lt-gridcount", has_text="50 pictures")
    words.filter(has_text="estimate").wait_for(timeout=120_000)
    page.evaluate("() => { LoraTrainer.state.pictureSeconds = 2; LoraTrainer.emit('run', 'mika'); }")
    words.filter(has_text="2 min").filter(has_not_text="estimate").wait_for(timeout=120_000)
