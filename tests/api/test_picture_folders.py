"""Several folders, chosen parts, masks and other verdicts over POST /pictures."""

import json
import shutil

import pytest
from PIL import Image

from tests.api.conftest import small_config

ONE = "10_sks crescent"


@pytest.fixture
def moons(pictures, tmp_path):
    """Twelve crescents directly in a folder."""
    return shutil.copytree(next(pictures.iterdir()), tmp_path / "moons")


def read(server, folder, **changes):
    answer = server.post("pictures", {"config": small_config(folder, **changes)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chosen_part_is_shown_in_the_whole_picture_and_counts_as_cropped(server, moons):
    Image.effect_noise((400, 200), 90).save(moons / "wide.png")
    plain = {one["key"]: one for one in read(server, moons)["pictures"]}["wide.png"]
    assert "frame" not in plain
    found = read(server, moons, data__crops=["wide.png=0.5,0,1,1"])
    cut = {one["key"]: one for one in found["pictures"]}["wide.png"]
    assert (cut["width"], cut["height"]) == (400, 200) and cut["part"] == [200, 200]
    assert cut["frame"] == [0.5, 0, 1, 1] and cut["crop"] == [0.5, 0.0, 1.0, 1.0] and cut["kept"] == 0.5
    assert cut["bucket"] == [64, 64] and found["counts"]["cropped"] == 1
    assert [64, 64] in found["shapes"][0]


def test_regularisation_and_validation_stand_behind_in_groups_of_their_own(server, moons, toy_pictures, tmp_path):
    regular = tmp_path / "2_shape"
    shutil.copytree(moons, regular, ignore=shutil.ignore_patterns("*.txt"))
    held = toy_pictures / "crescent" / "val"
    found = read(server, moons, data__reg_data_dir=str(regular), validate__data_dir=str(held))
    assert [(group["name"], group["kind"], group["count"]) for group in found["groups"]] == [
        ("moons", "trained", 12),
        ("2_shape", "regularisation", 12),
        ("10_sks crescent", "validation", 12),
    ]
    assert found["groups"][1]["repeats"] == 2 and found["groups"][1]["words"] == "shape"
    assert [one["group"] for one in found["pictures"]] == sorted(one["group"] for one in found["pictures"])
    assert found["counts"]["all"] == found["counts"]["used"] == 12
    assert found["regularisation"]["all"] == 12 and found["validation"] == {"count": 12, "source": "folder"}


def test_the_pictures_are_shown_although_a_second_folder_is_wrong(server, moons, tmp_path):
    found = read(server, moons, data__reg_data_dir=str(tmp_path / "nowhere"), validate__data_dir=str(tmp_path / "neither"))
    assert found["counts"]["used"] == 12
    assert [problem["path"] for problem in found["problems"]] == ["data.reg_data_dir", "validate.data_dir"]


def test_masks_are_counted_with_their_mean_and_missing_ones_are_a_problem_at_the_option(server, moons):
    found = read(server, moons, data__masks_beside=True)
    assert found["masks"] is None and [problem["path"] for problem in found["problems"]] == ["data.masks_beside"]
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    half.save(moons / "00-masklabel.png")
    found = read(server, moons, data__masks_beside=True)
    assert found["masks"] == {"count": 1, "all": 12, "share": 50.0} and found["problems"] == []
    assert [one["key"] for one in found["pictures"] if "mask" in one] == ["00.png"]


def test_a_copy_names_the_other_and_a_wrong_ending_is_a_note(server, moons):
    shutil.copy(moons / "03.png", moons / "99.png")
    (moons / "04.png").rename(moons / "04.webp")
    by_key = {one["key"]: one for one in read(server, moons)["pictures"]}
    assert by_key["99.png"]["notes"] == ["copy"] and by_key["99.png"]["like"] == "03.png"
    assert by_key["04.webp"]["notes"] == ["wrong-ending"] and by_key["04.webp"]["usable"]


def test_two_datasets_say_their_sizes(server, moons):
    tables = [{"image_dir": str(moons), "resolution": 64}, {"image_dir": str(moons), "resolution": 128, "batch_size": 2}]
    found = read(server, "", data__subsets=tables)
    assert [(group["name"], group["size"], group["batch"]) for group in found["groups"]] == [
        ("moons", [64, 64], 4),
        ("moons", [128, 128], 2),
    ]
    assert len(found["shapes"]) == 2 and {one["dataset"] for one in found["pictures"]} == {0, 1}


def test_folders_in_tables_and_dataset_files_may_not_lie_outside_either(closed_server, tmp_path):
    outside = tmp_path / "secret"
    file = tmp_path / "data" / "sets.toml"
    file.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{outside}'\n", encoding="utf-8")
    asked = [{"data__subsets": [{"image_dir": str(outside)}]}, {"data__dataset_config": str(file)}, {"data__reg_data_dir": str(outside)}]
    for changes in asked:
        answer = closed_server.post("pictures", {"config": small_config("", **changes)})
        assert answer.status_code == 403, (changes, answer.text)


def test_what_is_wrong_elsewhere_in_the_config_hides_no_folder(closed_server, tmp_path):
    """Pictures are shown although an option is wrong; the folders are looked at before that."""
    outside, inside = tmp_path / "secret", tmp_path / "data"
    outside.mkdir()
    Image.new("RGB", (64, 64)).save(outside / "x.png")
    (inside / "sets.toml").write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{outside}'\ncolor_aug = true\n", encoding="utf-8")
    (inside / "md.json").write_text(json.dumps({str(outside / "x.png"): {"caption": "a"}}), encoding="utf-8")
    asked = [
        {"data__subsets": [{"image_dir": str(outside)}], "data__reg_data_dir": str(inside)},
        {"data__dataset_config": str(inside / "sets.toml"), "data__cache_latents": False},
        {"data__in_json": str(inside / "md.json")},
        {"data__subsets": [{"metadata_file": str(inside / "md.json")}]},
    ]
    for changes in asked:
        answer = closed_server.post("pictures", {"config": small_config("", **changes)})
        assert answer.status_code == 403, (changes, answer.text)
