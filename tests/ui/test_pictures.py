"""Step 1 in Chromium on the real routes: forty files with all kinds of problems, cropping, several folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.files import read_config

from .conftest import Server
from .forty import add_masks, copy_some, draw_forty

Page = Callable[..., Any]
SHOWN = "cards => Object.fromEntries(cards.map(card => [card.dataset.key, (card.querySelector('.lt-verdict') || {}).textContent || '']))"


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(folder, file name -> badge)."""
    folder = tmp_path_factory.mktemp("photos") / "forty"
    return folder, draw_forty(folder)


@pytest.fixture
def step(open_page: Page, real: Server, forty: tuple[Path, dict[str, str]]) -> Callable[..., Any]:
    """step(**values) -> the Pictures step with the forty files, all of them decoded."""

    def show(lang: str = "en", context: dict[str, Any] | None = None, **values: Any) -> Any:
        page = open_page(f"{real.address}?__lang={lang}", **(context or {}))
        form = {"data.train_data_dir": str(forty[0]), "data.trigger_word": "sks thing", "data.resolution": 512}
        page.evaluate("values => LoraTrainer.set(values)", form | {path.replace("__", "."): value for path, value in values.items()})
        read(page)
        return page

    return show


def read(page: Any, until: str = "true") -> None:
    """Waits until the folder was read to its end."""
    page.wait_for_function(
        f"() => {{ const p = LoraTrainer.cache.pictures; return p && p.looking.done === p.looking.total && ({until}); }}", timeout=120_000
    )
    page.wait_for_timeout(50)


def names(page: Any) -> list[str]:
    """Keys of the pictures that are shown."""
    return page.locator(".lt-thumb").evaluate_all("cards => cards.map(card => card.dataset.key)")


def choose(page: Any, *keys: str) -> None:
    """A click on each."""
    for key in keys:
        page.locator(f'.lt-thumb[data-key="{key}"]').click()


def value(page: Any, path: str) -> Any:
    """What stands in the form."""
    return page.evaluate("path => LoraTrainer.value(path)", path)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_each_of_forty_files_has_its_badge_and_each_filter_shows_its_own(step: Callable[..., Any], forty: tuple[Path, dict[str, str]]):
    page, wanted = step(), forty[1]
    assert page.locator(".lt-thumb").evaluate_all(SHOWN) == wanted
    needs = {name for name, badge in wanted.items() if badge in ("broken", "not a picture", "too small", "small", "near-copy")}
    assert page.locator("#lora_trainer_step_pictures .lt-badge").inner_text() == str(len(needs)) == "13"
    chips = page.locator(".lt-filters button")
    assert chips.all_inner_texts() == ["All 40", "Needs a look 13", "Cropped 2", "Left out 7"]
    for chip, shown in (("Needs a look", needs), ("Cropped", {"wide_0.png", "wide_1.png"})):
        page.get_by_role("radio", name=chip).click()
        assert set(names(page)) == shown
    assert "33 pictures will be used" in page.locator(".lt-summary").inner_text()
    for line in page.locator("button.lt-line-note, .lt-infos button").all():
        line.click()
        count, word = line.inner_text().split("·")[0].strip().split(" ", 1)
        assert {wanted[name] for name in names(page)} == {word.strip()} and len(names(page)) == int(count)
    assert page.locator(".lt-broken").count() == 0  # the last filter shows none that cannot be drawn


def test_what_is_the_matter_is_said_of_the_chosen_picture_with_its_remedy(step: Callable[..., Any]):
    page = step()
    said = page.locator(".lt-remedies")
    for key, words in {
        "cut_off.png": "It is not used: save it again",
        "layers.psd": "save it as PNG or JPEG",
        "narrow_0.png": "each side needs at least 32",
        "little_0.png": "enlarged to 512 × 512",
        "plain_01_again.jpg": "Nearly the same picture as plain_01.png",
        "renamed_0.jpg": "of another kind than its name says",
        "turned_0.jpg": "turned as its EXIF data says",
        "clear_0.png": "transparent parts become white",
        "wide_0.png": "fits no training size exactly",
    }.items():
        choose(page, key)
        assert words in said.inner_text(), key
        page.keyboard.press("Escape")
    choose(page, "plain_03.png")
    assert said.count() == 0


def test_remedies_do_what_they_say_and_can_be_undone(step: Callable[..., Any]):
    page = step()
    choose(page, "plain_01_again.jpg")
    page.get_by_role("button", name="Show both").click()
    assert page.locator('.lt-thumb[aria-selected="true"]').evaluate_all("all => all.map(card => card.dataset.key)") == [
        "plain_01.png",
        "plain_01_again.jpg",
    ]
    page.keyboard.press("Escape")
    choose(page, "plain_01_again.jpg")
    page.get_by_role("button", name="Leave out the other").click()
    read(page, "p.counts.left_out === 1 && p.counts.used === 32")
    assert value(page, "data.leave_out") == ["plain_01.png"]
    page.locator(".lt-toast").get_by_role("button", name="Undo").click()
    read(page, "p.counts.left_out === 0")
    page.keyboard.press("Escape")
    choose(page, "little_0.png")
    page.get_by_role("button", name="Never enlarge").click()
    read(page, "!p.pictures.some(one => one.notes.includes('small'))")
    assert value(page, "data.bucket_no_upscale") is True
    page.keyboard.press("Escape")
    choose(page, "clear_0.png")
    page.get_by_role("button", name="Learn only what is visible").click()
    read(page, "p.masks && p.masks.count === 3")
    assert "3 of 33 have masks, 50 % learned on average" in page.locator(".lt-masks").inner_text()
    page.get_by_role("radio", name="Masked 3").click()
    assert set(names(page)) == {"clear_0.png", "clear_1.png", "clear_2.png"}


def test_a_broken_file_is_left_out_and_the_rest_found_ok_until_nothing_needs_a_look(step: Callable[..., Any]):
    page = step()
    page.get_by_role("radio", name="Needs a look").click()
    choose(page, "cut_off.png", "no_bytes.jpg", "a_page.png")
    page.keyboard.press("x")
    read(page, "p.counts.left_out === 3")
    page.get_by_role("button", name="These 10 are OK as they are").click()
    assert page.locator("#lora_trainer_step_pictures .lt-badge").count() == 0
    page.reload()
    page.wait_for_selector("[data-ready=true]", timeout=120_000)
    read(page)
    assert page.locator("#lora_trainer_step_pictures .lt-badge").count() == 0
    assert set(value(page, "data.leave_out")) == {"cut_off.png", "no_bytes.jpg", "a_page.png"}


def test_a_crop_is_drawn_with_the_mouse_shown_on_the_card_undone_and_removed(step: Callable[..., Any]):
    page = step()
    choose(page, "plain_00.png")
    page.get_by_role("button", name="Crop", exact=False).click()
    area = page.locator(".lt-croparea").bounding_box()
    corner = page.locator(".lt-handle.se").bounding_box()
    page.mouse.move(corner["x"] + 7, corner["y"] + 7)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.5, area["y"] + area["height"] * 0.75, steps=4)
    page.mouse.up()
    frame = page.locator(".lt-cropframe").bounding_box()
    page.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 2 + area["width"] * 0.25, frame["y"] + frame["height"] / 2, steps=4)
    page.mouse.up()
    assert "keeps 33" in page.locator(".lt-cropfacts").inner_text()  # 37 of the part, of which its size cuts a little
    assert "trained at 384 × 640" in page.locator(".lt-cropfacts").inner_text()
    page.get_by_role("button", name="Use this part").click()
    read(page, "p.counts.cropped === 3")
    [entry] = value(page, "data.crops")
    key, _, shares = entry.rpartition("=")
    assert key == "plain_00.png" and [float(share) for share in shares.split(",")] == pytest.approx([0.25, 0, 0.75, 0.75], abs=0.01)
    card = page.locator('.lt-thumb[data-key="plain_00.png"]')
    assert "your crop keeps 33" in card.inner_text() and card.locator(".lt-own").count() == 1
    assert page.get_by_role("radio", name="Cropped 3").count() == 1
    assert "1 cropped by you" in page.locator(".lt-summary").inner_text()
    page.locator(".lt-toast").get_by_role("button", name="Undo").click()
    read(page, "p.counts.cropped === 2")
    assert value(page, "data.crops") == []
    page.evaluate("LoraTrainer.set({'data.crops': ['plain_00.png=0.25,0,0.75,0.75']})")
    read(page, "p.counts.cropped === 3")
    page.locator(".lt-remedies").get_by_role("button", name="Remove crop").click()
    read(page, "p.counts.cropped === 2")


def test_keys_alone_crop_several_pictures_in_a_training_shape(step: Callable[..., Any]):
    page = step()
    choose(page, "plain_00.png", "plain_04.png")
    page.keyboard.press("c")
    page.keyboard.press("s")  # the next shape: the first of the run's
    shape = page.locator('.lt-cropshapes [aria-checked="true"]').inner_text()
    width, height = (int(side) for side in shape.split(" × "))
    for key in ("-", "-", "-", "ArrowRight", "ArrowDown", "Shift+ArrowLeft", "Enter", "Enter"):
        page.keyboard.press(key)
    assert page.locator(".lt-cropper").count() == 0
    read(page, "p.counts.cropped === 3")
    [entry] = value(page, "data.crops")  # the second was left whole
    left, top, right, bottom = (float(share) for share in entry.rpartition("=")[2].split(","))
    assert ((right - left) * 640) / ((bottom - top) * 640) == pytest.approx(width / height, abs=0.01)
    choose(page, "plain_04.png")  # no longer chosen
    page.keyboard.press("c")
    page.keyboard.press("Delete")
    read(page, "p.counts.cropped === 2")


def test_a_finger_moves_the_frame_on_a_phone(step: Callable[..., Any]):
    page = step(context={"width": 390, "height": 844, "has_touch": True, "is_mobile": True})
    choose(page, "plain_05.png")
    page.get_by_role("button", name="Crop").first.tap()
    page.wait_for_selector(".lt-cropframe")
    touch = page.context.new_cdp_session(page)

    def drag(start: tuple[float, float], end: tuple[float, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": start[0], "y": start[1]}]})
        for share in (0.3, 0.7, 1.0):
            at = {"x": start[0] + (end[0] - start[0]) * share, "y": start[1] + (end[1] - start[1]) * share}
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [at]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    area = page.locator(".lt-croparea").bounding_box()
    corner = page.locator(".lt-handle.nw").bounding_box()
    drag((corner["x"] + 2, corner["y"] + 2), (area["x"] + area["width"] * 0.4, area["y"] + area["height"] * 0.4))
    frame = page.locator(".lt-cropframe").bounding_box()
    assert frame["width"] == pytest.approx(area["width"] * 0.6, rel=0.05)
    drag((frame["x"] + 90, frame["y"] + 90), (frame["x"] + 90 - area["width"] * 0.2, frame["y"] + 90))
    page.wait_for_timeout(700)  # two touches at once would be a double tap
    page.get_by_role("button", name="Use this part").tap()
    [entry] = value(page, "data.crops")
    shares = [float(share) for share in entry.rpartition("=")[2].split(",")]
    assert shares == pytest.approx([0.2, 0.4, 0.8, 1.0], abs=0.04)


def test_crops_and_left_out_pictures_survive_a_reload_and_reach_the_run_while_files_stay(
    step: Callable[..., Any], real: Server, forty: tuple[Path, dict[str, str]]
):
    before = hashes(forty[0])
    changes = {"data__resolution": 64, "data__batch_size": 4, "steps__max_train_steps": 1, "save__output_name": "forty"}
    page = step(**changes)
    page.evaluate("LoraTrainer.leaveOut([{key: 'plain_02.png'}], true); LoraTrainer.crop([['wide_0.png', [0.1, 0, 0.3, 1]]])")
    read(page, "p.counts.left_out === 1 && p.counts.cropped > 1")
    page.wait_for_timeout(300)
    page.reload()
    page.wait_for_selector("[data-ready=true]", timeout=120_000)
    read(page)
    kept = {picture["key"]: picture for picture in page.evaluate("LoraTrainer.cache.pictures.pictures")}
    assert kept["wide_0.png"]["frame"] == [0.1, 0, 0.3, 1] and "left-out" in kept["plain_02.png"]["notes"]
    page.keyboard.press("3")
    page.locator("#lora_trainer_start:not(:disabled)").click(timeout=120_000)
    page.wait_for_function("(LoraTrainer.cache.status.run || {}).id", timeout=120_000)
    config = read_config(next(real.root.rglob("runs/forty*/config.toml")))
    assert config.data.crops == ("wide_0.png=0.1,0,0.3,1",)
    assert "plain_02.png" in config.data.leave_out and "cut_off.png" in config.data.leave_out
    real.manager.current and real.manager.current.command("stop-discard")
    page.wait_for_function("!LoraTrainer.activeRun()", timeout=120_000)
    assert hashes(forty[0]) == before


def test_a_choice_made_in_one_folder_comes_back_with_it(step: Callable[..., Any], forty: tuple[Path, dict[str, str]], tmp_path: Path):
    other = copy_some(forty[0], tmp_path / "other", "plain_03.png", "plain_04.png")
    page = step()
    page.evaluate("LoraTrainer.crop([['plain_03.png', [0, 0, 0.5, 1]]])")
    page.evaluate("folder => LoraTrainer.useFolder(folder)", str(other))
    read(page, "p.counts.all === 2")
    assert value(page, "data.crops") == []
    page.evaluate("folder => LoraTrainer.useFolder(folder)", str(forty[0]))
    read(page, "p.counts.all === 40")
    assert value(page, "data.crops") == ["plain_03.png=0,0,0.5,1"]


def test_masks_beside_pictures_are_found_counted_and_missed(step: Callable[..., Any], forty: tuple[Path, dict[str, str]], tmp_path: Path):
    folder = copy_some(forty[0], tmp_path / "masked", "plain_03.png", "plain_04.png", "plain_05.png")
    add_masks(folder, "plain_03.png", "plain_04.png")
    page = step(data__train_data_dir=str(folder))
    page.locator(".lt-masks .lt-link").click()
    page.get_by_role("radio", name="Beside").click()
    read(page, "p.masks")
    page.keyboard.press("Escape")
    assert "2 of 3 have masks, 50 % learned on average" in page.locator(".lt-masks").inner_text()
    assert page.locator(".lt-maskinset").count() == 2
    page.evaluate("folder => LoraTrainer.set({'data.masks_beside': undefined, 'data.mask_dir': folder})", str(tmp_path / "nothing"))
    page.locator(".lt-masks .lt-problem").wait_for(timeout=120_000)
    assert "there is no folder of masks" in page.locator(".lt-masks").inner_text()
    assert page.locator(".lt-thumb").count() == 3


def test_regularisation_pictures_stand_in_a_group_of_their_own(
    step: Callable[..., Any], forty: tuple[Path, dict[str, str]], tmp_path: Path
):
    regular = copy_some(forty[0], tmp_path / "reg" / "1_thing", "plain_06.png", "plain_07.png")
    page = step()
    page.get_by_role("button", name="More sources").click()
    field = page.get_by_label("Regularisation folder", exact=True)
    field.fill(str(regular.parent))
    field.press("Enter")
    field.blur()
    read(page, "p.groups.length === 2")
    heads = page.locator(".lt-group").all_inner_texts()
    assert "forty" in heads[0] and "1_thing" in heads[1] and "regularisation" in heads[1]
    page.get_by_role("radio", name="Regularisation 2").click()
    assert names(page) == ["regularisation/1_thing/plain_06.png", "regularisation/1_thing/plain_07.png"]
    assert page.locator(".lt-groupline").count() == 2
    field.fill(str(tmp_path / "missing"))
    field.blur()
    page.locator('[data-path="data.reg_data_dir"] .lt-problem').wait_for(timeout=120_000)
    assert page.locator(".lt-thumb").count() == 40


def test_a_dataset_file_is_shown_folder_by_folder(step: Callable[..., Any], forty: tuple[Path, dict[str, str]], tmp_path: Path):
    one = copy_some(forty[0], tmp_path / "faces", "plain_03.png", "plain_04.png")
    two = copy_some(forty[0], tmp_path / "bodies", "plain_05.png")
    file = tmp_path / "sets.toml"
    file.write_text(
        "[[datasets]]\nresolution = 512\nbatch_size = 2\n"
        f"[[datasets.subsets]]\nimage_dir = '{one}'\nnum_repeats = 5\nclass_tokens = 'sks'\n"
        f"[[datasets]]\nresolution = 256\n[[datasets.subsets]]\nimage_dir = '{two}'\nclass_tokens = 'sks'\n",
        encoding="utf-8",
    )
    page = step(data__train_data_dir=None, data__dataset_config=str(file))
    read(page, "p.groups.length === 2")
    heads = page.locator(".lt-group").all_inner_texts()
    assert "faces" in heads[0] and "× 5 repeats" in heads[0] and "512 × 512" in heads[0] and "2 a step" in heads[0]
    assert "bodies" in heads[1] and "256 × 256" in heads[1]
    assert "2 folders in 2 datasets" in page.locator('[data-path="data.train_data_dir"]').inner_text()


def test_validation_pictures_are_a_folder_or_some_held_back(step: Callable[..., Any], forty: tuple[Path, dict[str, str]], tmp_path: Path):
    held = copy_some(forty[0], tmp_path / "val", "plain_08.png", "plain_09.png")
    page = step()
    line = page.locator(".lt-validation")
    assert "none" in line.inner_text()
    line.locator(".lt-link").click()
    page.get_by_role("radio", name="Held back").click()
    page.get_by_label("Pictures held back").fill("5")
    page.get_by_label("Pictures held back").press("Enter")
    read(page, "p.validation.count === 5 && p.counts.used === 28")
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="Validation 5").click()
    assert len(names(page)) == 5 and page.locator(".lt-verdict", has_text="held back").count() >= 1
    page.evaluate("folder => LoraTrainer.set({'validate.data_dir': folder, 'validate.fraction': undefined})", str(held))
    read(page, "p.validation.source === 'folder' && p.counts.used === 33")
    assert "2 pictures in val, never trained on" in line.inner_text()


def test_settings_of_another_trainer_come_in_with_every_key_accounted_for(step: Callable[..., Any]):
    page = step()
    page.keyboard.press("3")
    page.locator(".lt-applied").first.wait_for()  # what is suggested at the first visit
    before = page.evaluate("LoraTrainer.state.values")
    page.get_by_role("button", name="Import…").click()
    theirs = {
        "LoRA_type": "Standard",
        "network_dim": 24,
        "network_alpha": 12,
        "learning_rate": 2e-4,
        "train_batch_size": 3,
        "use_wandb": True,
    }
    page.get_by_label("Text of a settings file").fill(json.dumps(theirs))
    page.get_by_role("button", name="Use these settings").click()
    said = page.locator(".lt-imported")
    said.wait_for(timeout=120_000)
    assert f"of {len(theirs)} keys of kohya_ss" in said.inner_text()
    listed = said.locator("li code").evaluate_all("all => all.map(code => code.textContent.split(' = ')[0])")
    assert set(theirs) <= set(listed)
    assert said.locator("details").first.locator("li .lt-muted").first.inner_text().strip()
    assert [value(page, path) for path in ("network.dim", "network.alpha", "data.batch_size")] == [24, 12, 3]
    page.get_by_role("dialog").get_by_role("button", name="Undo").click()
    assert page.evaluate("LoraTrainer.state.values") == before
