"""Folders together: regularisation, what is held back, several datasets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_trainer.config.build import build
from lora_trainer.data.batch_sampler import balance_regularisation, batches_per_epoch, epoch_batches
from lora_trainer.data.captions import plain_caption, process_caption
from lora_trainer.data.sources.assemble import assemble, prepare_records, regularisation_warnings
from lora_trainer.data.sources.blueprint import resolve_dataset

from .conftest import record


def folder_of(place: Path, count: int, caption: str = "", size=(64, 64)) -> Path:
    place.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (number * 9 % 256, number * 31 % 256, 77)).save(place / f"{number}.png")
        if caption:
            (place / f"{number}.txt").write_text(caption, encoding="utf-8")
    return place


def of(data, validation_dir="", **how):
    description = resolve_dataset(build({"data": {"resolution": 64, "bucket_reso_steps": 8, **data}}).data, str(validation_dir))
    found = assemble(description)
    return prepare_records(found.records, description, **{"seed": 1, **how}), description, found


# --- regularisation --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "regular", "expected"),
    [
        ([10] * 4, [1] * 4, [10] * 4),  # 40 showings over 4 pictures
        ([1] * 7, [1] * 3, [3, 2, 2]),
        ([2] * 5, [4, 4, 4], [4, 4, 2]),  # their own repeats, in order, until the sum is reached
        ([1, 1], [1] * 5, [1, 1, 0, 0, 0]),  # too many: those behind are not used
        ([5], [3, 1], [4, 1]),
    ],
)
def test_regularisation_is_shown_as_often_as_the_rest(trained, regular, expected):
    records = [record(f"{number}", repeats=repeats) for number, repeats in enumerate(trained)]
    records += [record(f"reg{number}", repeats=repeats, is_reg=True) for number, repeats in enumerate(regular)]
    assert [one.repeats for one in balance_regularisation(records) if one.is_reg] == expected


one = st.tuples(st.integers(0, 2), st.integers(1, 20), st.booleans(), st.booleans(), st.booleans())


@given(st.lists(one, max_size=25))
def test_in_every_dataset_the_sums_are_equal_and_nothing_else_changes(drawn):
    records = [
        record(f"{number}", dataset=dataset, repeats=repeats, is_reg=reg, usable=usable, validation=held)
        for number, (dataset, repeats, reg, usable, held) in enumerate(drawn)
    ]
    found = balance_regularisation(records)
    shown: Counter[tuple[int, bool]] = Counter()
    for before, after in zip(records, found, strict=True):
        if before.usable and not before.validation:
            shown[after.dataset, after.is_reg] += after.repeats
        if not before.is_reg or not before.usable or before.validation:
            assert after == before
    for dataset in range(3):
        regular = [one for one in found if one.dataset == dataset and one.is_reg and one.usable and not one.validation]
        assert not regular or shown[dataset, True] == shown[dataset, False]


def test_regularisation_captions_never_get_the_trigger_word(tmp_path):
    folder_of(tmp_path / "train" / "2_sks girl", 3)
    folder_of(tmp_path / "reg" / "1_girl", 2)
    folder_of(tmp_path / "reg" / "1_woman", 2, caption="a woman, smiling")
    data = {
        "train_data_dir": str(tmp_path / "train"),
        "reg_data_dir": str(tmp_path / "reg"),
        "trigger_word": "mika",
        "shuffle_caption": True,
    }
    placed, description, found = of(data)
    rules = [rules.caption_rules for rules in description.subsets]
    texts = {record.key.partition("/")[2]: process_caption(record, rules[record.subset], seed=1, epoch=1, repeat=0) for record in placed}
    regular = {record.key.partition("/")[2] for record in placed if record.is_reg}
    assert all("mika" not in texts[key] for key in regular) and all("mika" in text for key, text in texts.items() if key not in regular)
    assert texts["1_girl/0.png"] == "girl" and "smiling" in texts["1_woman/0.png"]
    assert regularisation_warnings(placed, "mika", 1.0) == []
    assert "1_girl" in str(found.summary) and "2_sks girl" in str(found.summary)


def test_a_plain_regularisation_folder_uses_the_class_word(tmp_path):
    data = {"train_data_dir": str(folder_of(tmp_path / "a", 1)), "reg_data_dir": str(folder_of(tmp_path / "b", 1))}
    placed, description, _ = of({**data, "trigger_word": "sks", "class_tokens": "dog"})
    assert [plain_caption(record, description.subsets[record.subset].caption_rules) for record in placed] == ["sks dog", "dog"]


def test_what_may_go_wrong_with_regularisation_is_said(tmp_path):
    train = folder_of(tmp_path / "a", 2, caption="sks")
    data = {"train_data_dir": str(train), "reg_data_dir": str(folder_of(tmp_path / "b", 5)), "trigger_word": "sks"}
    placed, *_ = of(data)
    told = " ".join(map(str, regularisation_warnings(placed, "sks", 1.0)))
    assert "3 of 5" in told and "without any words" in told
    named, *_ = of({**data, "reg_data_dir": str(folder_of(tmp_path / "1_sks girl", 1))})
    assert "unlearned" in " ".join(map(str, regularisation_warnings(named, "sks", 1.0)))
    unused, *_ = of(data, prior_weight=0.0)
    assert [record.repeats for record in unused if record.is_reg] == [0] * 5
    assert "prior_loss_weight" in " ".join(map(str, regularisation_warnings(unused, "sks", 0.0)))


# --- what is held back -------------------------------------------------------------------------------------------------------------------


def test_regularisation_pictures_are_never_held_back(tmp_path):
    data = {"train_data_dir": str(folder_of(tmp_path / "a", 8)), "reg_data_dir": str(folder_of(tmp_path / "b", 8))}
    placed, *_ = of(data, fraction=0.25)
    assert Counter((record.is_reg, record.validation) for record in placed) == {(False, False): 6, (False, True): 2, (True, False): 8}
    assert sum(record.repeats for record in placed if record.is_reg) == 6


def test_a_folders_own_share_is_held_back_by_its_own_seed(tmp_path):
    a, b = folder_of(tmp_path / "a", 10), folder_of(tmp_path / "b", 10)

    def held(seed, **more):
        tables = [{"image_dir": str(a), "validation_split": 0.3, "validation_seed": seed}, {"image_dir": str(b), **more}]
        placed, *_ = of({"subsets": tables}, fraction=0.2)
        return {record.key for record in placed if record.validation}

    first = held(5)
    assert Counter(key[0] for key in first) == {"a": 3, "b": 2}
    assert first == held(5) and first != held(6)
    assert Counter(key[0] for key in held(5, is_reg=True)) == {"a": 3}


def test_the_validation_folder_is_read_by_its_own_rules(tmp_path):
    a, held = folder_of(tmp_path / "a", 3), folder_of(tmp_path / "held", 2, caption="x")
    placed, description, _ = of({"train_data_dir": str(a), "trigger_word": "sks"}, held, fraction=0.5)
    assert [record.key for record in placed if record.validation] == ["validation/0.png", "validation/1.png"]
    assert description.subsets[placed[-1].subset].validation


# --- several datasets --------------------------------------------------------------------------------------------------------------------


def test_tables_that_differ_in_size_or_batch_make_datasets(tmp_path):
    folders = [folder_of(tmp_path / name, 3, size=(192, 192)) for name in "abc"]
    tables = [{"image_dir": str(folder)} for folder in folders]
    tables[1] |= {"resolution": 128, "batch_size": 2}
    placed, description, _ = of({"subsets": tables, "num_repeats": 2})
    assert [rules.dataset for rules in description.subsets] == [0, 1, 0]
    assert [record.bucket for record in placed] == [(64, 64)] * 3 + [(128, 128)] * 3 + [(64, 64)] * 3
    sizes = [data.batch_size for data in description.datasets]
    batches = epoch_batches(placed, batch_size=sizes, seed=1, epoch=1)
    assert len(batches) == batches_per_epoch(placed, sizes) == 12 + 3
    for batch in batches:
        (dataset,) = {placed[item.index].dataset for item in batch}
        assert len(batch) <= sizes[dataset]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([(64, 64), (64, 128)]), st.integers(1, 9)), max_size=20), st.data())
def test_batches_of_several_datasets_hold_one_dataset_and_one_size(drawn, data):
    sizes = [data.draw(st.integers(1, 5)) for _ in range(3)]
    records = [record(f"{n}", dataset=dataset, bucket=bucket, repeats=repeats) for n, (dataset, bucket, repeats) in enumerate(drawn)]
    batches = epoch_batches(records, batch_size=sizes, seed=3, epoch=2)
    assert Counter(item.index for batch in batches for item in batch) == {n: one.repeats for n, one in enumerate(records)}
    for batch in batches:
        ((dataset, _),) = {(records[item.index].dataset, records[item.index].bucket) for item in batch}
        assert len(batch) <= sizes[dataset]
    assert len(batches) == batches_per_epoch(records, sizes)


def test_folders_of_one_name_keep_their_pictures_apart(tmp_path):
    tables = [{"image_dir": str(folder_of(tmp_path / top / "girl", 2))} for top in "ab"]
    placed, *_ = of({"subsets": tables})
    assert [record.key for record in placed] == ["girl/0.png", "girl/1.png", "girl (2)/0.png", "girl (2)/1.png"]


def test_folders_that_are_called_like_ours_keep_their_pictures_apart(tmp_path):
    for name in ("validation", "regularisation"):
        folder_of(tmp_path / "a" / name, 1)
    reg, held = folder_of(tmp_path / "b", 1), folder_of(tmp_path / "c", 1)
    simple, *_ = of({"train_data_dir": str(tmp_path / "a"), "reg_data_dir": str(reg)}, held)
    assert len({record.key for record in simple}) == 4
    tables, *_ = of({"subsets": [{"image_dir": str(tmp_path / "a" / "validation")}]}, held)
    assert [record.key for record in tables] == ["validation/0.png", "validation (2)/0.png"]


def test_each_folder_has_its_own_caption_rules(tmp_path):
    a, b = folder_of(tmp_path / "a", 1, caption="smile"), folder_of(tmp_path / "b", 1, caption="frown")
    tables = [{"image_dir": str(a), "trigger_word": "sks"}, {"image_dir": str(b), "trigger_word": "ohwx", "caption_prefix": "photo,"}]
    placed, description, _ = of({"subsets": tables})
    texts = [plain_caption(record, description.subsets[record.subset].caption_rules) for record in placed]
    assert "sks" in texts[0] and "ohwx" not in texts[0]
    assert "ohwx" in texts[1] and texts[1].count("photo") == 1 and "sks" not in texts[1]
