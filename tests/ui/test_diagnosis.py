"""A grid without a suggestion says what it looks like, and one button makes the next run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .made_up import World

Page = Callable[..., Any]
pytest.importorskip("playwright")


def asked(world: World, path: str) -> list[Any]:
    return [body for method, at, body in world.asked if method == "POST" and at == path]


def without_best(mika: Page, world: World, remedy: str, lang: str = "en", **size: int) -> Any:
    grid = world.grid

    def undecided() -> dict[str, Any]:
        why = {"template": "It looks trained too little: pictures hardly differ from those without the network.", "values": {}}
        none = {"template": "No cell shows the concept: with the network, pictures are no nearer to yours than without it.", "values": {}}
        return {**grid(), "best": None, "because": none, "diagnosis": {"kind": "x", "remedy": remedy, "because": why}}

    world.grid = undecided  # type: ignore[method-assign]
    page = mika("compare", "grid", lang=lang, **size)
    page.evaluate("LoraTrainer.openRun('mika')")
    page.locator(".lt-why").wait_for(timeout=120_000)
    return page


@pytest.mark.parametrize(
    ("remedy", "button", "wanted"),
    [
        (
            "higher-rate",
            "New run at twice the learning rate",
            {"optimizer": {"learning_rate": 2e-4, "unet_lr": 2.8e-4, "text_encoder_lr": 1.4e-4}},
        ),
        (
            "lower-rate",
            "New run at half the learning rate",
            {"optimizer": {"learning_rate": 5e-5, "unet_lr": 7e-5, "text_encoder_lr": 3.5e-5}},
        ),
        ("more-epochs", "New run, twice as long", {"steps": {"max_train_epochs": 20}}),
    ],
)
def test_the_button_starts_the_run_that_the_diagnosis_asks_for(
    mika: Page, made_up: tuple[str, World], remedy: str, button: str, wanted: dict[str, Any]
):
    page = without_best(mika, made_up[1], remedy)
    assert "trained too little" in page.locator(".lt-why").inner_text()
    page.evaluate("LoraTrainer.resumable = () => false")
    page.evaluate(
        "() => { const read = LoraTrainer.get; LoraTrainer.get = async (path) => (path.endsWith('/config') ? { config: {"
        " data: { train_data_dir: 'D:\\\\photos\\\\mika' }, optimizer: { learning_rate: 1e-4, unet_lr: 1.4e-4, text_encoder_lr: 7e-5 },"
        " steps: { max_train_epochs: 10 } } } : read(path)); }"
    )
    page.evaluate("LoraTrainer.emit('run', 'mika')")
    page.get_by_role("button", name=button).click()
    page.wait_for_function("LoraTrainer.state.step === 'train'", timeout=120_000)
    [body] = asked(made_up[1], "runs")
    for section, values in wanted.items():
        assert {name: body["config"][section].get(name) for name in values} == pytest.approx(values)


def test_lower_weights_are_drawn_at_once(mika: Page, made_up: tuple[str, World]):
    page = without_best(mika, made_up[1], "lower-weights")
    page.get_by_role("button", name="Draw the weights").click()
    for _ in range(40):
        if asked(made_up[1], "grid"):
            break
        page.wait_for_timeout(250)
    [body] = asked(made_up[1], "grid")
    assert body["weights"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert page.locator("#lora_trainer_weights").input_value() == "0.1 0.2 0.3 0.4 0.5"


def test_wrong_captions_lead_to_the_captions_of_the_run(mika: Page, made_up: tuple[str, World]):
    page = without_best(mika, made_up[1], "captions")
    page.get_by_role("button", name="Look at the captions").click()
    page.wait_for_function("LoraTrainer.state.step === 'captions'", timeout=120_000)


@pytest.mark.parametrize(("lang", "width"), [("en", 1440), ("zh_CN", 1440), ("en", 390), ("zh_CN", 390)])
def test_the_diagnosis_fits_the_window_in_both_languages(mika: Page, made_up: tuple[str, World], lang: str, width: int):
    page = without_best(mika, made_up[1], "higher-rate", lang, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = "() => { const box = document.querySelector('.lt-why').getBoundingClientRect();"
    inside += " const button = document.querySelector('.lt-why button').getBoundingClientRect(); return button.right <= box.right + 1; }"
    assert page.evaluate(inside)
    if lang == "zh_CN":
        assert "看起来训练不足" in page.locator(".lt-why").inner_text()
