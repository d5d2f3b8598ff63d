"""Tables [[data.subsets]]: strictly checked, written and read again."""

from __future__ import annotations

import pytest

from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.files import config_text, read_config
from lora_trainer.config.subsets import PER_DATASET, PER_SUBSET, table_options
from lora_trainer.errors import ConfigError


def problems(*tables, **data):
    with pytest.raises(ConfigError) as caught:
        build({"data": {"subsets": list(tables), **data}})
    return {problem.path: problem for problem in caught.value.problems}


def test_a_table_takes_what_a_folder_and_a_dataset_have_and_nothing_else():
    assert set(PER_DATASET) | set(PER_SUBSET) < set(table_options())
    assert {"train_data_dir", "cache_latents", "leave_out", "subsets"}.isdisjoint(table_options())


def test_tables_survive_being_written(tmp_path):
    tables = [
        {"image_dir": "数据 集/ü {x}/[1]", "num_repeats": 3, "class_tokens": "sks girl", "resolution": [64, 128]},
        {"image_dir": "b", "is_reg": True, "caption_extension": ".txt"},
        {"metadata_file": "md.json", "face_crop_aug_range": [1.0, 3.0]},
    ]
    config = build({"data": {"subsets": tables, "cache_latents": False}})
    assert build(to_mapping(config)) == config == build(to_mapping(config, changed_only=True))
    (tmp_path / "my.toml").write_text(config_text(config), encoding="utf-8")
    assert read_config(tmp_path / "my.toml").data == config.data
    assert config.data.subsets[0].get("resolution") == (64, 128) and config.data.subsets[2].get("face_crop_aug_range") == "1.0,3.0"


def test_folders_of_tables_are_found_beside_the_config(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "my.toml").write_text("[[data.subsets]]\nimage_dir = 'pictures'\n", encoding="utf-8")
    assert read_config(tmp_path / "my.toml").data.subsets[0].get("image_dir") == str(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("table", "path", "word"),
    [
        ({"image_dir": "a", "num_repeat": 2}, "data.subsets[1].num_repeat", "num_repeats"),
        ({"image_dir": "a", "num_repeats": 0}, "data.subsets[1].num_repeats", "too small"),
        ({"image_dir": "a", "num_repeats": "2"}, "data.subsets[1].num_repeats", "whole number"),
        ({"image_dir": "a", "is_reg": "yes"}, "data.subsets[1].is_reg", "true or false"),
        ({"image_dir": "a", "cache_latents": False}, "data.subsets[1].cache_latents", "no setting"),
        ({"image_dir": "C:\new"}, "data.subsets[1].image_dir", "control character"),
        ({"num_repeats": 2}, "data.subsets[1].image_dir", "no folder"),
        ({"image_dir": "a", "min_bucket_reso": 2048}, "data.subsets[1].min_bucket_reso", "larger than"),
        ({"image_dir": "a", "caption_extension": "*.txt"}, "data.subsets[1].caption_extension", "ending"),
        ({"image_dir": "a", "color_aug": True}, "data.subsets[1].color_aug", "cache_latents"),
        ({"image_dir": "a", "validation_split": 2.0}, "data.subsets[1].validation_split", "too large"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_number(table, path, word):
    found = problems({"image_dir": "first"}, table)
    assert list(found) == [path] and word in found[path].text() and found[path].fix.text()


@pytest.mark.parametrize("value", [3, "a", ["a"], {"image_dir": "a"}])
def test_anything_but_tables_is_refused(value):
    with pytest.raises(ConfigError, match=r"data\.subsets: must be tables"):
        build({"data": {"subsets": value}})


def test_pictures_are_described_once():
    for name in ("train_data_dir", "in_json", "reg_data_dir", "dataset_config"):
        assert list(problems({"image_dir": "a"}, **{name: "x"})) == [f"data.{name}"]


def test_what_is_wrong_in_data_is_said_once_and_not_for_each_table():
    found = problems({"image_dir": "a"}, {"image_dir": "b"}, min_bucket_reso=2048)
    assert list(found) == ["data.min_bucket_reso"]
