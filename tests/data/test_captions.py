"""The caption as the model reads it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.data.captions import CaptionRules, caption_of, decoded, drawn_caption, holds, parts, read_caption, write_caption
from lora_trainer.errors import DatasetError

from .conftest import record

TAGS = "1girl, smile, red hair, outdoors, looking at viewer, hat"


def drawn(caption, rules, *, seed=1, epoch=1, repeat=0, key="a.png"):
    return drawn_caption(record(key, caption=caption), rules, seed=seed, epoch=epoch, repeat=repeat)


# --- trigger and class words ---


@pytest.mark.parametrize(
    "caption, trigger, final",
    [
        ("smile, hat", "sks", "sks, smile, hat"),
        ("sks, smile", "sks", "sks, smile"),
        ("a photo of SKS girl", "sks", "a photo of SKS girl"),
        ("masks on a wall", "sks", "sks, masks on a wall"),
        ("sks2, hat", "sks", "sks, sks2, hat"),
        ("画米卡在海边", "米卡", "画米卡在海边"),
        ("一个女孩", "米卡", "米卡, 一个女孩"),
        ("", "sks", "sks"),
        ("smile", "", "smile"),
        ("smile", "sks girl", "sks girl, smile"),
        ("first line\nsecond", "", "first line"),
        ("\n\n  late  \n", "", "late"),
    ],
)
def test_the_trigger_word_is_put_in_front_of_captions_that_lack_it(caption, trigger, final):
    assert caption_of(record(caption=caption), CaptionRules(trigger)) == final


@pytest.mark.parametrize(
    "folder, words, trigger, final",
    [
        ("sks girl", "", "", "sks girl"),
        ("sks girl", "", "sks", "sks girl"),
        ("girl", "", "sks", "sks girl"),
        ("sks girl", "dog", "sks", "sks dog"),
        ("", "", "sks", "sks"),
        ("", "", "", ""),
        ("girl", "dog", "", "dog"),
    ],
)
def test_without_a_caption_file_trigger_and_class_words_are_the_caption(folder, words, trigger, final):
    assert caption_of(record(class_tokens=folder), CaptionRules(trigger, words)) == final


def test_with_a_caption_file_the_class_words_are_unused():
    assert caption_of(record(caption="smile", class_tokens="sks girl"), CaptionRules("sks", "girl")) == "sks, smile"


def test_nothing_is_changed_where_nothing_is_asked_for():
    text = "a  photo,of , a dog ,"
    assert drawn(text, CaptionRules()) == text


# --- shuffle and dropout ---


def test_shuffling_keeps_the_trigger_in_front_and_loses_nothing():
    rules = CaptionRules("sks", shuffle=True)
    seen = {drawn(TAGS, rules, epoch=epoch) for epoch in range(20)}
    assert len(seen) > 15
    for text in seen:
        assert text.startswith("sks, ") and sorted(text.split(", ")) == sorted(["sks", *TAGS.split(", ")])


def test_the_trigger_counts_into_the_kept_parts():
    texts = [drawn(TAGS, CaptionRules("sks", keep_tokens=2, shuffle=True), epoch=epoch).split(", ") for epoch in range(20)]
    assert {tuple(text[:2]) for text in texts} == {("sks", "1girl")} and len({text[2] for text in texts}) > 1


def test_a_trigger_that_the_caption_begins_with_is_kept_there():
    texts = [drawn(f"photo of sks, {TAGS}", CaptionRules("sks", shuffle=True), epoch=epoch) for epoch in range(20)]
    assert all(text.startswith("photo of sks, ") for text in texts)


def test_kept_parts_without_a_trigger_stay_in_place():
    texts = [drawn(TAGS, CaptionRules(keep_tokens=3, shuffle=True), epoch=epoch).split(", ") for epoch in range(20)]
    assert {tuple(text[:3]) for text in texts} == {tuple(TAGS.split(", ")[:3])}
    assert drawn(TAGS, CaptionRules(keep_tokens=99, shuffle=True)) == TAGS


def test_captions_are_dropped_as_often_as_asked_for():
    dropped = sum(drawn(TAGS, CaptionRules("sks", dropout_rate=0.25), epoch=epoch) == "" for epoch in range(2000))
    assert 430 < dropped < 570
    assert drawn(TAGS, CaptionRules("sks", dropout_rate=1.0)) == ""


def test_dropping_some_does_not_change_how_the_others_are_shuffled():
    with_drops, without = CaptionRules(shuffle=True, dropout_rate=0.5), CaptionRules(shuffle=True)
    for epoch in range(30):
        assert drawn(TAGS, with_drops, epoch=epoch) in ("", drawn(TAGS, without, epoch=epoch))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 2}, {"repeat": 1}, {"key": "b.png"}])
def test_seed_epoch_repeat_and_picture_each_draw_anew(other):
    rules = CaptionRules(shuffle=True)
    long = ", ".join(f"tag{number}" for number in range(30))
    assert drawn(long, rules) == drawn(long, rules) != drawn(long, rules, **other)


def test_another_process_draws_the_same():
    code = (
        "from pathlib import Path; from lora_trainer.data.records import ImageRecord; from lora_trainer.data.captions import *\n"
        f"one = ImageRecord(Path('a.png'), 'a.png', 64, 64, caption_path=Path('a.txt'), caption={TAGS!r})\n"
        "print(drawn_caption(one, CaptionRules('sks', shuffle=True), seed=5, epoch=3, repeat=2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == drawn(TAGS, CaptionRules("sks", shuffle=True), seed=5, epoch=3, repeat=2)


# --- parts for the page ---


def test_parts_tell_what_each_is():
    rules = CaptionRules("sks", keep_tokens=2, shuffle=True)
    assert parts(record(caption="a, b, c"), rules) == [("sks", "trigger"), ("a", "kept"), ("b", "shuffled"), ("c", "shuffled")]
    assert parts(record(caption="a, b"), CaptionRules()) == [("a", "plain"), ("b", "plain")]
    assert parts(record(class_tokens="girl"), CaptionRules("sks")) == [("sks", "trigger"), ("girl", "class")]
    assert parts(record(class_tokens="girl"), CaptionRules()) == [("girl", "class")]
    assert parts(record(), CaptionRules()) == []


words = st.text("abc 画,é", max_size=30)


@given(words, st.sampled_from(["", "sks", "a", "sks, x"]), st.integers(0, 4), st.booleans(), st.integers(0, 5))
def test_parts_are_the_caption_that_is_trained_on(caption, trigger, keep, shuffle, epoch):
    rules, one = CaptionRules(trigger, keep_tokens=keep, shuffle=shuffle), record(caption=caption)
    final = drawn_caption(one, rules, seed=1, epoch=epoch, repeat=0)
    shown = [text for text, _ in parts(one, rules, seed=1, epoch=epoch)]
    assert [part.strip() for part in final.split(",") if part.strip()] == shown
    assert holds(final, trigger)


# --- files ---

LEGACY = [
    ("一个女孩，红色的头发", "gb18030"),
    ("女の子、赤い髪、帽子", "cp932"),
    ("it’s a girl with a “hat”", "cp1252"),
    ("fenêtre d’été, Straße", "cp1252"),
]


@pytest.mark.parametrize(
    "text, encoding", [*LEGACY, ("ü 画", "utf-8"), ("ü 画", "utf-8-sig"), ("ü 画 girl", "utf-16"), ("a 画 girl", "utf-16-le")]
)
def test_a_caption_is_read_in_whatever_it_was_written(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_caption(tmp_path / "a.txt") == text


@given(st.binary(max_size=60))
def test_no_bytes_at_all_stop_the_reading(data):
    assert isinstance(decoded(data), str)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff")))
def test_utf_8_is_never_taken_for_something_else(text):
    assert decoded(text.encode("utf-8")) == text


def test_a_caption_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.txt"):
        read_caption(tmp_path / "a.txt")


def test_writing_a_caption_gives_the_old_text_back(tmp_path):
    path = tmp_path / "a.txt"
    assert write_caption(path, "新, one") == ""
    path.write_bytes("一个女孩，红色的头发".encode("gb18030"))
    assert write_caption(path, "new") == "一个女孩，红色的头发"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
