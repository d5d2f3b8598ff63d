"""sd-scripts' dataset files. The layouts follow the examples in its own documentation; expected values were worked out from its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.config.build import build
from lora_trainer.data.sources.assemble import assemble, prepare_records
from lora_trainer.data.sources.blueprint import DatasetBlueprint, resolve_dataset
from lora_trainer.errors import ConfigError


def described(file: Path, **data) -> DatasetBlueprint:
    return resolve_dataset(build({"data": {"dataset_config": str(file), **data}}).data)


@pytest.fixture
def written(tmp_path):
    """Writes a dataset file beside folders `a`, `b`, `reg` and `meta` with a picture each; returns its path."""
    for number, name in enumerate(("a", "b", "reg", "meta")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (600, 400), (number * 50, 100, 30)).save(tmp_path / name / "1.png")
    (tmp_path / "meta" / "md.json").write_text(json.dumps({"1": {"caption": "a frog", "tags": "green"}}), encoding="utf-8")

    def write(text: str) -> Path:
        file = tmp_path / "my sets.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


# as in the overview of the documentation: three folders at 512 by 4, one metadata file at 768 by 2, keep_tokens at three heights
OVERVIEW = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'a'
  class_tokens = 'sks girl'

  [[datasets.subsets]]
  image_dir = 'b'
  class_tokens = 'sks boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'person'
  keep_tokens = 1

[[datasets]]
resolution = [768, 768]
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'meta'
  metadata_file = 'meta/md.json'
"""


def test_the_documented_example_inherits_downwards(written, tmp_path):
    found = described(written(OVERVIEW))
    assert [(data.resolution, data.batch_size) for data in found.datasets] == [(512, 4), ((768, 768), 2)]
    assert [rules.data.keep_tokens for rules in found.subsets] == [2, 3, 1, 1]
    assert [rules.dataset for rules in found.subsets] == [0, 0, 0, 1]
    assert [rules.is_reg for rules in found.subsets] == [False, False, True, False]
    assert all(rules.data.shuffle_caption and rules.source.caption_extensions == (".txt",) for rules in found.subsets)
    assert [Path(rules.source.folder) for rules in found.subsets] == [tmp_path / name for name in ("a", "b", "reg", "meta")]
    records = assemble(found).records
    assert [(record.key, record.class_tokens, record.caption) for record in records] == [
        ("a/1.png", "sks girl", ""),
        ("b/1.png", "sks boy", ""),
        ("reg/1.png", "person", ""),
        ("meta/1.png", "", "a frog, green"),
    ]


def test_without_enable_bucket_pictures_are_cut_to_the_size_and_that_is_said(written):
    found = described(written(OVERVIEW))
    placed = prepare_records(assemble(found).records, found, seed=1)
    assert {record.bucket for record in placed} == {(512, 512), (768, 768)}
    assert any("enable_bucket" in str(message) for message in found.warnings)
    grouped = described(written(OVERVIEW.replace("[general]", "[general]\nenable_bucket = true")))
    placed = prepare_records(assemble(grouped).records, grouped, seed=1)
    assert {record.bucket for record in placed} == {(640, 384), (896, 640)}  # 1.5: 1.4 is nearer than 1.667
    assert grouped.warnings == ()
    assert not described(written(OVERVIEW), enable_bucket=False).warnings


TWICE = """
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = 'a'
[[datasets]]
resolution = 768
[[datasets.subsets]]
image_dir = 'a'
"""


def test_the_same_folder_counts_in_two_datasets_and_once_in_one(written):
    both = described(written(TWICE))
    assert [(record.key, record.dataset) for record in assemble(both).records] == [("a/1.png", 0), ("a (2)/1.png", 1)]
    once = described(written(TWICE.replace("[[datasets]]\nresolution = 768\n", "")))
    assert len(once.subsets) == 1
    assert any("datasets[0].subsets[1]" in str(message) and "datasets[0].subsets[0]" in str(message) for message in once.warnings)


# as in the documentation's example of separators and wildcards
SEPARATORS = """
[general]
flip_aug = true
color_aug = false
resolution = [1024, 1024]

[[datasets]]
batch_size = 6
enable_bucket = true
bucket_no_upscale = true
caption_extension = ".txt"
keep_tokens_separator= "|||"
shuffle_caption = true
caption_tag_dropout_rate = 0.1
secondary_separator = ";;;"
enable_wildcard = true

  [[datasets.subsets]]
  image_dir = "a"
  num_repeats = 1
  caption_prefix = "1girl, hatsune miku, vocaloid |||"
  caption_suffix = ", anime screencap ||| masterpiece, rating: general"
"""


def test_the_documented_example_of_separators(written):
    found = described(written(SEPARATORS))
    (rules,), (data,) = found.subsets, found.datasets
    assert (data.resolution, data.batch_size, data.bucket_no_upscale, rules.flip_aug) == ((1024, 1024), 6, True, True)
    caption = rules.caption_rules
    assert (caption.keep_tokens_separator, caption.secondary_separator, caption.wildcard) == ("|||", ";;;", True)
    assert (caption.tag_dropout_rate, caption.shuffle) == (0.1, True)
    assert caption.prefix.endswith("|||") and caption.suffix.endswith("rating: general")


EVERY_KEY = """
[general]
batch_size = 3
bucket_no_upscale = true
bucket_reso_steps = 32
enable_bucket = true
max_bucket_reso = 2048
min_bucket_reso = 128
resolution = 256
network_multiplier = 1.0
validation_split = 0.25
validation_seed = 7
resize_interpolation = "area"
color_aug = false
face_crop_aug_range = [1.0, 3.0]
flip_aug = true
num_repeats = 4
random_crop = false
shuffle_caption = true
keep_tokens = 2
keep_tokens_separator = "|||"
secondary_separator = ";;;"
caption_separator = "."
enable_wildcard = true
token_warmup_min = 2
token_warmup_step = 100
caption_prefix = "p"
caption_suffix = "s"
custom_attributes = {}
caption_dropout_every_n_epochs = 3
caption_dropout_rate = 0.5
caption_tag_dropout_rate = 0.25
caption_extension = ".cap"
class_tokens = "sks"
cache_info = true
[[datasets]]
[[datasets.subsets]]
image_dir = "a"
alpha_mask = true
conditioning_data_dir = "b"
"""


def test_every_key_is_read_and_what_has_no_use_is_said(written, tmp_path):
    found = described(written(EVERY_KEY), cache_latents=False)
    (rules,) = found.subsets
    data = rules.data
    assert (data.batch_size, data.bucket_no_upscale, data.bucket_reso_steps, data.enable_bucket) == (3, True, 32, True)
    assert (data.max_bucket_reso, data.min_bucket_reso, data.resolution, data.resize_interpolation) == (2048, 128, 256, "area")
    assert (rules.validation_split, rules.validation_seed) == (0.25, 7)
    assert (data.color_aug, data.face_crop_aug_range, data.flip_aug, data.num_repeats, data.random_crop) == (
        False,
        "1.0,3.0",
        True,
        4,
        False,
    )
    assert (data.keep_tokens, data.keep_tokens_separator, data.secondary_separator, data.caption_separator) == (2, "|||", ";;;", ".")
    assert (data.enable_wildcard, data.token_warmup_min, data.token_warmup_step) == (True, 2, 100)
    assert (data.caption_prefix, data.caption_suffix, data.caption_dropout_every_n_epochs) == ("p", "s", 3)
    assert (data.caption_dropout_rate, data.caption_tag_dropout_rate, rules.source.caption_extensions) == (0.5, 0.25, (".cap",))
    assert (data.class_tokens, data.alpha_mask, Path(data.mask_dir)) == ("sks", True, tmp_path / "b")
    told = " ".join(map(str, found.warnings))
    assert "general.cache_info" in told and "general.custom_attributes" in told


PLAIN = "[general]\n{general}\n[[datasets]]\n{dataset}\n[[datasets.subsets]]\nimage_dir = 'a'\n{subset}\n"


@pytest.mark.parametrize(
    ("part", "line", "place", "word"),
    [
        ("general", "shufle_caption = true", "general.shufle_caption", "shuffle_caption"),
        ("dataset", "batchsize = 2", "datasets[0].batchsize", "batch_size"),
        ("subset", "num_repeat = 2", "datasets[0].subsets[0].num_repeat", "num_repeats"),
        ("subset", "num_repeats = '2'", "datasets[0].subsets[0].num_repeats", "whole number"),
        ("subset", "flip_aug = 1", "datasets[0].subsets[0].flip_aug", "true or false"),
        ("dataset", "resolution = [512]", "datasets[0].resolution", "width and height"),
        ("dataset", "resolution = 500", "datasets[0].resolution", "multiple of 8"),
        ("general", "caption_dropout_rate = 3", "general.caption_dropout_rate", "too large"),
        ("subset", "resolution = 512", "datasets[0].subsets[0].resolution", "belongs to the dataset"),
        ("subset", "batch_size = 2", "datasets[0].subsets[0].batch_size", "belongs to the dataset"),
        ("dataset", "image_dir = 'b'", "datasets[0].image_dir", "no setting"),
        ("dataset", "is_reg = true", "datasets[0].is_reg", "no setting"),
        ("general", "network_multiplier = 0.5", "general.network_multiplier", "strength"),
        ("general", "prior_loss_weight = 0.5", "general.prior_loss_weight", "loss.prior_loss_weight"),
        ("general", "max_token_length = 225", "general.max_token_length", "model.max_token_length"),
        ("general", "train_batch_size = 2", "general.train_batch_size", "batch_size"),
        ("dataset", "min_bucket_reso = 2048", "datasets[0].min_bucket_reso", "larger than the longest side"),
        ("subset", "color_aug = true", "datasets[0].subsets[0].color_aug", "cache_latents"),
        ("subset", "random_crop = true", "datasets[0].subsets[0].random_crop", "cache_latents"),
        ("subset", "caption_separator = 3", "datasets[0].subsets[0].caption_separator", "text"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_in_the_file(written, part, line, place, word):
    text = PLAIN.format(**({"general": "", "dataset": "", "subset": ""} | {part: line}))
    with pytest.raises(ConfigError) as caught:
        described(written(text))
    (problem,) = caught.value.problems
    assert problem.path == f"data.dataset_config.{place}" and word in problem.text() and problem.fix.text()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "datasets"),
        ("[[datasets]]\n", "datasets[0].subsets"),
        ("[datasets]\n", "datasets"),
        ("general = 3\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'", "general"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "datasets[0].subsets[0].image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n[[dataset]]\n", "dataset"),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir='a'\n[[datasets.subsets]]\nmetadata_file='x'",
            "datasets[0].subsets[1].metadata_file",
        ),
        ("[[datasets]]\n[[datasets.subsets]]\nmetadata_file='x'\nis_reg = true", "datasets[0].subsets[0].is_reg"),
        ("[[datasets]]\n[[datasets.subsets]]\nmetadata_file='x'\ncaption_extension = '.txt'", "datasets[0].subsets[0].caption_extension"),
    ],
)
def test_a_wrong_build_of_the_file_is_named(written, text, place):
    with pytest.raises(ConfigError) as caught:
        described(written(text))
    assert f"data.dataset_config.{place}" in [problem.path for problem in caught.value.problems]


def test_all_that_is_wrong_is_told_at_once(written):
    text = PLAIN.format(general="x = 1", dataset="batch_size = 'many'", subset="flip = true")
    with pytest.raises(ConfigError) as caught:
        described(written(text))
    assert len(caught.value.problems) == 3


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        described(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("[[datasets]]\nresolution = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        described(tmp_path / "bad.toml")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.json"):
        described(tmp_path / "bad.json")


def test_the_file_may_be_json_and_repeats_below_one_take_a_folder_out(written, tmp_path):
    subsets = [{"image_dir": "a"}, {"image_dir": "b", "num_repeats": 0}]
    (tmp_path / "sets.json").write_text(json.dumps({"datasets": [{"subsets": subsets}]}), encoding="utf-8")
    found = described(written("") and tmp_path / "sets.json")
    assert [Path(rules.source.folder).name for rules in found.subsets] == ["a"]
    assert any("num_repeats" in str(message) for message in found.warnings)


def test_data_fills_what_the_file_leaves_open_and_folders_beside_it_are_not_used(written):
    found = described(written(PLAIN.format(general="", dataset="", subset="")), batch_size=3, flip_aug=True, train_data_dir="elsewhere")
    assert found.datasets[0].batch_size == 3 and found.subsets[0].flip_aug and len(found.subsets) == 1
    assert any("train_data_dir" in str(message) for message in found.warnings)


def test_a_number_in_the_name_of_an_image_dir_says_nothing(tmp_path):
    (tmp_path / "5_cat").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "5_cat" / "1.png")
    (tmp_path / "x.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = '5_cat'", encoding="utf-8")
    (record,) = assemble(described(tmp_path / "x.toml")).records
    assert (record.repeats, record.class_tokens) == (1, "")


def test_captions_of_both_usual_endings_are_found_and_the_documented_one_wins(written, tmp_path):
    file = written(PLAIN.format(general="", dataset="", subset=""))
    (tmp_path / "a" / "1.txt").write_text("from txt", encoding="utf-8")
    assert assemble(described(file)).records[0].caption == "from txt"
    (tmp_path / "a" / "1.caption").write_text("from caption", encoding="utf-8")
    assert assemble(described(file)).records[0].caption == "from caption"
