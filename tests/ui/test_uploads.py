"""Dropped pictures on the real page: added to the set or a new folder, taken back, and every file that is not taken named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.data.pictures import heif

from .conftest import Server

Page = Callable[..., Any]
pytest.importorskip("playwright")
UPLOAD = """(files) => {
    const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    LoraTrainer.upload(files.map(([path, text]) => ({ file: new File([bytes(text)], path.split('/').pop()), path, folder: '' })));
}"""


@pytest.fixture
def mine(toy_pictures: Path, tmp_path: Path) -> Path:
    """A folder of the user's own: two pictures, the first without a caption."""
    folder = tmp_path / "mine"
    folder.mkdir()
    train = toy_pictures / "crescent" / "train"
    for number, source in enumerate(sorted(train.rglob("*.png"))[:2]):
        shutil.copy(source, folder / f"{number}.png")
    (folder / "1.txt").write_text("its own caption", encoding="utf-8")
    return folder


def encoded(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_drop_asks_and_adds_to_the_folder_and_undo_takes_out_only_that(open_page: Page, real: Server, mine: Path, toy_pictures: Path):
    page = open_page(f"{real.address}?__lang=en")
    page.evaluate("folder => LoraTrainer.useFolder(folder)", str(mine))
    page.locator(".lt-thumb").nth(1).wait_for(timeout=120_000)
    other = encoded(sorted((toy_pictures / "crescent" / "train").rglob("*.png"))[5])
    words, mask = "d29yZHM=", other
    page.evaluate(UPLOAD, [["0.txt", words], ["0.png", other], ["0-masklabel.png", mask], ["new.png", other]])
    page.get_by_role("button", name="Add to mine").click()
    page.get_by_text("4 files were added to mine.").wait_for(timeout=120_000)
    # the picture got another name beside the one that was there, and its caption and mask went with it
    assert names(mine) == ["0 (2)-masklabel.png", "0 (2).png", "0 (2).txt", "0.png", "1.png", "1.txt", "new.png"]
    assert page.evaluate("LoraTrainer.folder()") == str(mine)
    page.locator(".lt-thumb").nth(3).wait_for(timeout=120_000)
    page.locator(".lt-toast").get_by_role("button", name="Undo").click()
    page.wait_for_function("document.querySelectorAll('.lt-thumb').length === 2")
    assert names(mine) == ["0.png", "1.png", "1.txt"] and (mine / "1.txt").read_text(encoding="utf-8") == "its own caption"


def test_a_new_folder_is_a_new_one_and_undo_goes_back_to_the_old(open_page: Page, real: Server, mine: Path):
    page = open_page(f"{real.address}?__lang=en")
    page.evaluate("folder => LoraTrainer.set({'data.train_data_dir': folder, 'data.trigger_word': 'two sets'})", str(mine))
    uploads = next(iter(real.root.rglob("uploads")), real.root / "none")
    for name, wanted in (("a.png", "two sets"), ("b.png", "two sets 2")):
        page.evaluate("folder => LoraTrainer.useFolder(folder)", str(mine))
        page.evaluate(UPLOAD, [[name, encoded(mine / "0.png")]])
        page.get_by_role("button", name="New folder", exact=True).click()
        page.get_by_text(f"1 file was added to {wanted}.").wait_for(timeout=120_000)
        uploads = next(real.root.rglob("uploads"))
        assert names(uploads / wanted) == [name]
    page.locator(".lt-toast").last.get_by_role("button", name="Undo").click()
    page.wait_for_function("folder => LoraTrainer.folder() === folder", arg=str(mine))
    assert not (uploads / "two sets 2").exists() and names(uploads / "two sets") == ["a.png"]


def test_every_file_that_is_not_taken_is_named_with_its_reason(open_page: Page, real: Server, mine: Path):
    page = open_page(f"{real.address}?__lang=en")
    page.evaluate("folder => LoraTrainer.useFolder(folder)", str(mine))
    some = "AAAAGGZ0eXBoZWljAAAAAG1pZjFoZWlj"
    odd = ["film.MOV", ".DS_Store", "Thumbs.db", "a.psd", "notes.docx", "all.zip", "without ending"]
    page.evaluate(UPLOAD, [[name, some] for name in [*odd, "IMG_1.HEIC"]])
    page.locator(".lt-aside summary").evaluate("(summary) => summary.click()")  # the question lies over it
    page.get_by_role("button", name="Add to mine").click()
    page.locator(".lt-thumb").nth(2).wait_for(timeout=120_000)  # what was unfolded stays so while the file is sent
    told = page.locator(".lt-aside").inner_text()
    assert "7 files were not added" in told and all(name in told for name in odd)
    assert "a film" in told and "PNG or JPEG" in told and "archive" in told
    # a phone's picture is stored, and named with the remedy where it cannot be read
    picture = page.evaluate("LoraTrainer.cache.pictures.pictures.find((one) => one.name === 'IMG_1.HEIC')")
    assert not picture["usable"] and (heif.can_read() or "pip install --no-deps" in picture["reason"])
    page.evaluate(UPLOAD, [["only.mov", some]])
    page.locator(".lt-aside", has_text="only.mov").wait_for()


def test_a_whole_folder_is_chosen_with_a_click_and_keeps_its_folders(open_page: Page, real: Server, mine: Path, tmp_path: Path):
    chosen = tmp_path / "set of moons"
    shutil.copytree(mine, chosen / "3_moon")
    shutil.copytree(mine, chosen / "2_sun")
    page = open_page(f"{real.address}?__lang=en")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="or choose a whole folder").click()
    chooser.value.set_files(str(chosen))
    page.get_by_text("6 files were added to set of moons.").wait_for(timeout=120_000)
    stored = next(real.root.rglob("uploads")) / "set of moons"
    assert names(stored) == ["2_sun", "3_moon"] and names(stored / "3_moon") == ["0.png", "1.png", "1.txt"]
    assert page.evaluate("LoraTrainer.folder()") == str(stored)


def test_a_sending_that_fails_names_each_file_that_did_not_arrive(open_page: Page, real: Server, mine: Path):
    page = open_page(f"{real.address}?__lang=en")
    page.evaluate("folder => LoraTrainer.useFolder(folder)", str(mine))
    page.route("**/lora-trainer/v1/folders?path=*", lambda route: route.abort())
    page.evaluate(UPLOAD, [[f"{number}.webp", "AAAA"] for number in range(7)])
    page.get_by_role("button", name="Add to mine").click()
    page.locator(".lt-aside", has_text="7 files were not added").wait_for(timeout=120_000)
    page.locator(".lt-aside summary").click()
    assert all(f"{number}.webp" in page.locator(".lt-aside").inner_text() for number in range(7))
