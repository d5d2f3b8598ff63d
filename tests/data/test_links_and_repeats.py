"""Links to themselves among the pictures, and folders whose number in front is no number of repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.api.scan_cache import _add_entries
from lora_trainer.data.sources.blueprint import Source
from lora_trainer.data.sources.scan import cached_scan, scan_source
from lora_trainer.errors import DatasetError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def scan(folder: Path):
    return scan_source(Source("data.train_data_dir", str(folder)))


def warnings(folder: Path) -> str:
    return "\n".join(message.text() for message in scan(folder).warnings)


@pytest.mark.parametrize("name", ["loop", "loop.png", "loop.txt", "loop.d", "a.txt"])
def test_a_link_to_itself_costs_no_other_picture(tmp_path: Path, name: str):
    picture(tmp_path / "a.png")
    loop(tmp_path / name)
    found = scan(tmp_path)
    assert [record.key for record in found.used] == ["a.png"]
    unusable = [record.reason.text() for record in found.records if not record.usable]
    assert unusable == (["The file is a link to itself."] if name == "loop.png" else [])
    assert cached_scan(Source("data.train_data_dir", str(tmp_path))).used == found.used


def test_links_between_each_other_and_links_to_nothing_cost_nothing_either(tmp_path: Path):
    picture(tmp_path / "10_moon" / "a.png")
    (tmp_path / "x.png").symlink_to("y.png")
    (tmp_path / "y.png").symlink_to("x.png")
    (tmp_path / "10_moon" / "gone.png").symlink_to("nothing.png")
    (tmp_path / "10_moon" / "up").symlink_to(tmp_path, target_is_directory=True)
    loop(tmp_path / "20_star")
    assert [record.key for record in scan(tmp_path).used] == ["10_moon/a.png"]


def test_pictures_behind_a_link_to_itself_are_watched_for_changes(tmp_path: Path):
    class Digest(list):
        update = list.append

    loop(tmp_path / "a.png")
    before, after = Digest(), Digest()
    _add_entries(before, tmp_path, 2)
    picture(tmp_path / "b.png")
    _add_entries(after, tmp_path, 2)
    assert before != after and b"unreadable" not in before + after


def test_a_folder_of_no_repeats_is_left_aside_for_that_reason(tmp_path: Path):
    for name in ("0_zero", "2_ok", "-1_minus", "1234567_many", "plain"):
        picture(tmp_path / name / "x.png")
    told = warnings(tmp_path)
    assert "0_zero is left aside, because it has 0 repeats" in told
    assert "-1_minus is left aside: -1 in front" in told and "1234567_many is left aside: 1234567" in told
    assert "the name is not NUMBER_NAME (for example 10_mika): plain" in told
    assert [record.key for record in scan(tmp_path).used] == ["2_ok/x.png"]


def test_folders_of_no_repeats_are_not_used_where_no_other_is_numbered(tmp_path: Path):
    picture(tmp_path / "0_zero" / "x.png")
    with pytest.raises(DatasetError, match="0_zero is left aside, because it has 0 repeats"):
        scan(tmp_path)
    picture(tmp_path / "plain" / "y.png")
    assert [record.key for record in scan(tmp_path).used] == ["plain/y.png"] and "0 repeats" in warnings(tmp_path)
