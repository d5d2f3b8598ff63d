"""sd-scripts' metadata files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.config.build import build
from lora_trainer.data.captions import plain_caption
from lora_trainer.data.sources.assemble import assemble, prepare_records
from lora_trainer.data.sources.blueprint import resolve_dataset
from lora_trainer.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "数据 集" / "[1]"
    place.mkdir(parents=True)
    for number, name in enumerate(("frog.png", "ü toad.jpg", "newt.webp")):
        Image.new("RGB", (640, 384), (number * 60, 90, 40)).save(place / name)
    return place


def read(entries, tmp_path, folder="", name="md.json", **data):
    text = entries if isinstance(entries, str) else json.dumps(entries, ensure_ascii=False)
    (tmp_path / name).write_text(text, encoding="utf-8")
    options = build({"data": {"in_json": str(tmp_path / name), "train_data_dir": str(folder), **data}}).data
    description = resolve_dataset(options)
    return assemble(description), description


def test_stems_names_and_full_paths_are_found(folder, tmp_path):
    entries = {"frog": {"caption": "a frog"}, "ü toad.jpg": {"tags": "toad, brown"}, str(folder / "newt.webp"): {"caption": "a newt"}}
    found, _ = read(entries, tmp_path, folder)
    assert {record.key: record.caption for record in found.records} == {
        "frog.png": "a frog",
        "newt.webp": "a newt",
        "ü toad.jpg": "toad, brown",
    }
    alone, _ = read({str(folder / "newt.webp"): {"caption": "a newt"}}, tmp_path)
    assert [(record.path, record.width) for record in alone.records] == [(folder / "newt.webp", 640)]


def test_tags_stand_behind_every_line_of_the_caption(folder, tmp_path):
    entries = {"frog": {"caption": "a frog\na green one", "tags": "wet, small"}}
    (record,) = read(entries, tmp_path, folder)[0].records
    assert record.caption.splitlines() == ["a frog, wet, small", "a green one, wet, small"]


def test_an_entry_without_words_uses_trigger_and_class(folder, tmp_path):
    found, description = read({"frog": {}}, tmp_path, folder, trigger_word="sks", class_tokens="animal")
    assert plain_caption(found.records[0], description.subsets[0].caption_rules) == "sks animal"


def test_the_group_that_the_file_names_is_taken_where_it_fits(folder, tmp_path):
    entries = {"frog": {"caption": "a", "train_resolution": [448, 576]}, "newt": {"caption": "b", "train_resolution": [1024, 1024]}}
    found, description = read(entries, tmp_path, folder)
    assert [record.bucket for record in prepare_records(found.records, description, seed=1)] == [(448, 576), (640, 384)]


def test_a_set_that_was_moved_is_found_in_the_folder(folder, tmp_path):
    entries = {"D:\\old place\\frog.png": {"caption": "a frog"}, "/gone/newt.webp": {"caption": "a newt"}}
    assert [record.key for record in read(entries, tmp_path, folder)[0].records] == ["frog.png", "newt.webp"]


def test_what_is_missing_on_either_side_is_named(folder, tmp_path):
    found, _ = read({"frog": {"caption": "a"}, "heron": {"caption": "b"}}, tmp_path, folder)
    told = " ".join(map(str, found.warnings))
    assert "heron" in told and "newt.webp" in told and "ü toad.jpg" in told


def test_json_lines_are_read_too(folder, tmp_path):
    lines = "\n".join(json.dumps({"image_path": str(folder / name), "caption": name}) for name in ("frog.png", "newt.webp"))
    assert [record.caption for record in read(lines, tmp_path, name="md.jsonl")[0].records] == ["frog.png", "newt.webp"]


def test_pictures_can_be_left_out_by_key(folder, tmp_path):
    found, _ = read({"frog": {"caption": "a"}, "newt": {"caption": "b"}}, tmp_path, folder, leave_out=["newt.webp"])
    assert [(record.key, record.usable) for record in found.records] == [("frog.png", True), ("newt.webp", False)]


@pytest.mark.parametrize(
    ("entries", "word"),
    [("{", "valid JSON"), ("[1]", "row 1"), ('{"a": 3}', "metadata file"), ({"heron": {}}, "heron"), ({}, "pictures")],
)
def test_a_file_that_says_nothing_of_use_is_refused(folder, tmp_path, entries, word):
    with pytest.raises(DatasetError, match=word) as caught:
        read(entries, tmp_path, folder)
    assert caught.value.problems[0].fix.text()


def test_a_missing_file_is_named(folder):
    options = build({"data": {"in_json": str(folder / "none.json"), "train_data_dir": str(folder)}}).data
    with pytest.raises(DatasetError, match=r"none\.json"):
        assemble(resolve_dataset(options))


def test_regularisation_pictures_stand_beside_a_metadata_file(folder, tmp_path):
    (tmp_path / "reg" / "1_animal").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "reg" / "1_animal" / "x.png")
    found, _ = read({"frog": {"caption": "a"}}, tmp_path, folder, reg_data_dir=str(tmp_path / "reg"))
    assert [(record.key, record.is_reg) for record in found.records] == [("frog.png", False), ("regularisation/1_animal/x.png", True)]
    assert isinstance(found.records[0].path, Path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "frog.png", "text": "a frog"}\n{"file_name": "newt.webp", "text": "a newt"}\n'),
        ("rows.json", '[{"image": "frog.png", "caption": "a frog"}, {"image": "newt", "prompt": "a newt"}]'),
        ("metadata.csv", 'file_name,text\nfrog.png,a frog\n"newt.webp","a newt"\n'),
        ("plain.json", '{"frog.png": "a frog", "newt.webp": "a newt"}'),
    ],
)
def test_rows_as_hugging_face_data_sets_have_them_are_read(folder, tmp_path, name, text):
    found, _ = read(text, tmp_path, folder, name=name)
    assert {record.key: record.caption for record in found.records} == {"frog.png": "a frog", "newt.webp": "a newt"}


def test_names_in_a_file_beside_the_pictures_are_found_without_a_folder(folder):
    file = folder / "metadata.jsonl"
    file.write_text('{"file_name": "frog.png", "text": "a frog", "tags": ["green", " wet "]}\n', encoding="utf-8")
    data = build({"data": {"in_json": str(file)}}).data
    assert [record.caption for record in assemble(resolve_dataset(data)).records] == ["a frog, green, wet"]


def test_a_row_without_a_name_is_named_with_the_keys_that_are_looked_for(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"row 2 of .*md\.jsonl names no picture") as caught:
        read('{"file_name": "frog.png"}\n{"picture": "newt.webp"}', tmp_path, folder, name="md.jsonl")
    assert "image_path, file_name" in caught.value.problems[0].fix.text()


def test_a_nul_in_a_metadata_file_is_left_out_and_told(folder, tmp_path):
    found, _ = read({"frog": {"caption": "a\0 frog"}}, tmp_path, folder)
    assert found.records[0].caption == "a frog" and "NUL" in " ".join(map(str, found.warnings))


def test_a_metadata_file_makes_nobody_look_at_another_computer(folder, tmp_path, monkeypatch):
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or scandir(path))
    names = ("//evil.example/share/frog.png", "\\\\evil.example\\share\\frog.png", "/\\evil.example\\frog.png")
    found, _ = read({name: {"caption": "a"} for name in names}, tmp_path, folder)
    assert [record.path.name for record in found.records if record.caption] == ["frog.png"], "it is looked for in the folder of pictures"
    assert seen and not [path for path in seen if "evil" in path]
