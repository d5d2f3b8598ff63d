"""Draws docs/images anew: each step in both languages, from the real page, with the small model's own pictures and a real run.

`python -m tests.ui.take_screenshots [FOLDER]`, about ten minutes on two cores.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_trainer import assets

from .conftest import ARGUMENTS, Server

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LANGUAGES = {"en": "en", "zh": "zh-CN"}
STEPS = ("pictures", "captions", "settings", "train", "compare")
LARGEST = 250_000
PROMPTS = [f"a sks crescent on a {colour} background --w 64 --h 64 --d 9 --l 5 --s 20" for colour in ("white", "blue")]


def make_pictures(root: Path) -> Path:
    """Crescents with captions, beside them the validation pictures; one file cut off, one there twice, one without a caption."""
    folder = root / "crescent"
    folder.mkdir(parents=True)
    for file in sorted((assets.toy_pictures() / "crescent" / "train").rglob("*.*")):
        shutil.copy(file, folder / f"moon_{file.name}")
    shutil.copytree(assets.toy_pictures() / "crescent" / "val", root / "crescent-val")
    shutil.copy(folder / "moon_05.png", folder / "moon_12.png")
    broken = (folder / "moon_07.png").read_bytes()
    (folder / "moon_13.png").write_bytes(broken[: len(broken) // 3])
    (folder / "moon_10.txt").unlink()
    return folder


def form(folder: Path) -> dict[str, Any]:
    """The demo's settings, with more repeats than epochs."""
    return {
        "data.train_data_dir": str(folder),
        "validate.data_dir": str(folder.with_name("crescent-val")),
        "data.trigger_word": "sks crescent",
        "data.num_repeats": 10,
        "data.batch_size": 4,
        "steps.max_train_epochs": 8,
        "network.dim": 8,
        "network.alpha": 8,
        "optimizer.learning_rate": 2e-3,
        "schedule.warmup_steps": 10,
        "schedule.min_lr_ratio": 0.1,
        "sample.prompts": PROMPTS,
        "save.output_name": "crescent",
    }


class Camera:
    """A browser before the page."""

    def __init__(self, browser: Any, address: str, images: Path) -> None:
        self.browser = browser
        self.address = address
        self.images = images

    def page(self, language: str, theme: str = "light", width: int = 1440, height: int = 900) -> Any:
        page = self.browser.new_context(viewport={"width": width, "height": height}).new_page()
        page.goto(f"{self.address}?__lang={LANGUAGES[language]}&__theme={theme}")
        page.wait_for_selector("[data-ready=true]", timeout=120_000)
        return page

    def take(self, page: Any, name: str, *, whole: bool = False) -> None:
        from PIL import Image

        page.mouse.move(0, 0)
        page.wait_for_timeout(1200)
        path = self.images / f"{name}.png"
        page.screenshot(path=str(path), full_page=whole)
        if path.stat().st_size > LARGEST:
            Image.open(path).save(path, optimize=True)
        if path.stat().st_size > LARGEST:
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        print(path.name, path.stat().st_size)  # noqa: T201

    def show(self, page: Any, step: str) -> None:
        page.evaluate("step => LoraTrainer.goToStep(step)", step)
        page.wait_for_timeout(2500)


def main(images: Path) -> None:
    """Everything, in the order in which a user meets it."""
    from playwright.sync_api import sync_playwright

    images.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp())
    values = form(make_pictures(root / "photos"))
    server = Server(root / "data")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        camera = Camera(browser, server.address, images)
        pages = {language: camera.page(language) for language in LANGUAGES}
        for language, page in pages.items():
            page.evaluate("values => { LoraTrainer.set(values, 'example'); LoraTrainer.state.subject = 'object'; }", values)
            page.wait_for_timeout(15_000)
            for step in STEPS[:3]:
                camera.show(page, step)
                if step == "settings":
                    page.evaluate("LoraTrainer.suggest()")
                    page.wait_for_timeout(4000)
                camera.take(page, f"{STEPS.index(step) + 1}-{step}-{language}")
                if step == "settings":
                    page.locator(".lt-suggest > .lt-answers .lt-button").last.click()
        during(camera, pages, server)
        compare(camera, pages, server)
        browser.close()
    server.close()
    shutil.rmtree(root, ignore_errors=True)


def during(camera: Camera, pages: dict[str, Any], server: Server) -> None:
    """Step 4 when somewhat more than half is done, also dark and on a phone; then at the end."""
    first = pages["en"]
    camera.show(first, "settings")
    first.locator("#lora_trainer_start:not(:disabled)").click(timeout=120_000)
    for page in pages.values():
        camera.show(page, "train")
    job = wait(lambda: server.manager.current)
    wait(lambda: job.status.step >= 0.6 * job.status.total_steps > 0 and job.status.state == "training")
    for language, page in pages.items():
        camera.take(page, f"4-train-{language}")
    job.command("pause")
    wait(lambda: job.status.state == "paused")
    camera.take(first, "4-paused-en")
    dark = camera.page("zh", "dark")
    camera.show(dark, "train")
    job.command("resume")
    wait(lambda: job.status.state == "training")
    camera.take(dark, "4-train-dark-zh")
    phone = camera.page("en", width=390, height=844)
    camera.show(phone, "train")
    camera.take(phone, "phone-train-en", whole=True)
    wait(lambda: not job.running)


def compare(camera: Camera, pages: dict[str, Any], server: Server) -> None:
    """Step 5 with half of the grid, then with all of it and its star."""
    first = pages["en"]
    camera.show(first, "compare")
    first.locator(".lt-gridcount .lt-button").click()
    job = wait(lambda: server.manager.current)
    wait(lambda: job.status.done >= 17 or not job.running)
    camera.take(first, "5-rendering-en")
    wait(lambda: not job.running)
    for language, page in pages.items():
        camera.show(page, "compare")
        camera.take(page, f"5-compare-{language}")


def wait(reached: Any, seconds: float = 900) -> Any:
    """Until it is true; returns what it was."""
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
