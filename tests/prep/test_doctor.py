"""The dataset doctor on a folder with known faults: each is counted, named by picture, and the worst is told first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from lora_trainer.api.dataset_reports import examine_dataset
from lora_trainer.cli.main import main
from lora_trainer.config.build import build
from lora_trainer.prep.report import report

LONG = ", ".join(f"a red car number {n} on the road" for n in range(14))


def drawn(seed: int, size: tuple[int, int] = (192, 192)) -> Image.Image:
    """A picture with edges, unlike those of other seeds."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(random.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        corners = [(int(x * size[0]), int(y * size[1])) for x, y in random.random((3, 2))]
        pen.polygon(corners, fill=tuple(random.integers(0, 256, 3)))
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures that are as they should be, and one of each fault."""
    place = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        drawn(number).save(place / f"{number:02}.png")
        (place / f"{number:02}.txt").write_text(f"sks, smiling, outfit{number % 2}", encoding="utf-8")
    faults = {"copy": drawn(3), "soft": drawn(50).filter(ImageFilter.GaussianBlur(9)), "tiny": drawn(51, (40, 40))}
    faults |= {name: drawn(60 + place_) for place_, name in enumerate(["empty", "long", "chinese", "strange", "silent"])}
    faults |= {"wide": drawn(80, (600, 192))}
    for name, image in faults.items():
        image.save(place / f"{name}.png")
    texts = {
        "copy": "sks",
        "soft": "sks",
        "tiny": "sks",
        "empty": "",
        "long": f"sks, {LONG}",
        "chinese": "一个女孩站在海边",
        "wide": "a wall",
    }
    texts |= {"strange": "sks, kazumikatori", "00": "sks, smiling, kazumikatori"}
    for name, text in texts.items():
        (place / f"{name}.txt").write_text(text, encoding="utf-8")
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return place


def found(folder: Path, **data: Any) -> dict[str, Any]:
    values = {"train_data_dir": str(folder), "resolution": 128, "min_bucket_reso": 64, "trigger_word": "sks", **data}
    diagnosis, advice = examine_dataset(build({"data": values}))
    return diagnosis.to_json(advice)


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return found(folder)


def test_every_file_is_counted_under_its_verdict(seen: dict[str, Any]):
    counts = seen["counts"]
    assert (counts["all"], counts["used"], counts["broken"], counts["small"], counts["copy"]) == (22, 21, 1, 1, 1)
    assert [one["key"] for one in seen["unusable"]] == ["broken.png"]
    assert [copy["key"] for copy in seen["copies"]] == ["copy.png"] and "03.png" in seen["copies"][0]["reason"]
    assert seen["sizes"] == {"smallest": (40, 40), "middle": (192, 192), "largest": (600, 192), "different": 3}
    assert sum(bucket["count"] for bucket in seen["buckets"]) == 21


def test_captions_are_named_by_what_is_wrong_with_them(seen: dict[str, Any]):
    captions = seen["captions"]
    assert captions["without"] == ["silent.png"] and captions["empty"] == ["empty.png"]
    assert [entry["key"] for entry in captions["too_long"]] == ["long.png"] and captions["too_long"][0]["tokens"] > 75
    assert captions["without_trigger"] == ["chinese.png", "empty.png", "wide.png"]
    assert captions["other_letters"] == ["chinese.png"]
    assert {"word": "kazumikatori", "captions": 2} in [
        {"word": entry["word"], "captions": entry["captions"]} for entry in captions["unknown_words"]
    ]
    assert "smiling" not in {entry["word"] for entry in captions["unknown_words"]}


def test_the_soft_picture_is_found_among_sharp_ones(seen: dict[str, Any]):
    assert seen["blurred"] == ["soft.png"]


def test_a_set_that_is_soft_throughout_is_a_style_and_not_blurred(tmp_path: Path):
    for number in range(6):
        drawn(number).filter(ImageFilter.GaussianBlur(9)).save(tmp_path / f"{number}.png")
    assert found(tmp_path)["blurred"] == []


def test_suggestions_come_in_order_of_worth_with_their_pictures(seen: dict[str, Any]):
    worth = [one["worth"] for one in seen["suggestions"]]
    assert worth == sorted(worth, reverse=True) and seen["suggestions"][0]["pictures"] == ["broken.png"]
    concerned = {key for one in seen["suggestions"] for key in one["pictures"]}
    assert concerned >= {"broken.png", "copy.png", "soft.png", "tiny.png", "empty.png", "long.png", "chinese.png", "silent.png"}


def test_without_captions_and_trigger_that_comes_first(tmp_path: Path):
    for number in range(9):
        drawn(number).save(tmp_path / f"{number}.png")
    first = found(tmp_path, trigger_word="")["suggestions"][0]
    assert first["worth"] == 99 and "trigger word" in first["message"]


def test_tags_are_counted_and_those_on_every_picture_pointed_out(tmp_path: Path):
    for number in range(9):
        drawn(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"sks, blue hair, {'smile' if number else 'frown'}", encoding="utf-8")
    document = found(tmp_path)
    assert document["tags"] == [
        {"text": text, "count": count} for text, count in [("blue hair", 9), ("sks", 9), ("smile", 8), ("frown", 1)]
    ]
    assert any("Tags on every picture" in one["message"] for one in document["suggestions"])


def test_a_clean_folder_gets_no_advice(tmp_path: Path):
    for number in range(12):
        drawn(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"sks, pose {number}", encoding="utf-8")
    document = found(tmp_path)
    assert document["suggestions"] == []
    assert "as they should be" in report(document, "en")


def test_the_verb_writes_the_report_in_both_forms(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["prepare", "scan", str(folder), "--trigger", "sks", "--set", "data.resolution=128"]
    assert main([*words, "--out", str(tmp_path / "report.md"), "--lang", "zh_CN"]) == 0
    assert "broken.png" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "report.md").read_text(encoding="utf-8").rstrip() == capsys.readouterr().out.rstrip()
    assert main([*words, "--out", str(tmp_path / "report.json"), "--json"]) == 0
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(capsys.readouterr().out)


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", "scan", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_few_pictures_are_pointed_out(tmp_path: Path):
    for number in range(3):
        drawn(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("sks", encoding="utf-8")
    assert [one["message"] for one in found(tmp_path)["suggestions"]] == ["There are only 3 pictures."]
