"""The caption as the model reads it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.build import build
from lora_trainer.data.caption_notes import caption_notes
from lora_trainer.data.captions import (
    CaptionRules,
    caption_parts,
    caption_tags,
    contains_trigger,
    plain_caption,
    process_caption,
    read_caption,
    rules_from,
    write_caption,
)
from lora_trainer.data.sources.text_decoding import decode_text
from lora_trainer.errors import DatasetError

from .caption_table import CASES, OURS, Case
from .conftest import record

TAGS = "1girl, smile, red hair, outdoors, looking at viewer, hat"


def drawn(caption, rules, *, seed=1, epoch=1, repeat=0, key="a.png"):
    return process_caption(record(key, caption=caption), rules, seed=seed, epoch=epoch, repeat=repeat)


# --- the written table ---


def readings(one: Case, count: int) -> set[str]:
    """What is read of a case at `count` showings."""
    known = {"class_tokens": one.words} if one.caption is None else {"caption": one.caption}
    rules, at = CaptionRules(**one.options), {"epoch": 1, **one.at}
    return {process_caption(record(**known), rules, seed=3, repeat=repeat, **at) for repeat in range(count)}


@pytest.mark.parametrize("one", [*CASES, *OURS], ids=str)
def test_a_caption_is_read_as_the_table_says(one):
    assert readings(one, 5 if len(one.read) == 1 else 150) == set(one.read)


def test_the_table_holds_what_was_promised():
    assert len({str(one) for one in CASES}) >= 60


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
    assert plain_caption(record(caption=caption), CaptionRules(trigger)) == final


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
    assert plain_caption(record(class_tokens=folder), CaptionRules(trigger, words)) == final


def test_with_a_caption_file_the_class_words_are_unused():
    assert plain_caption(record(caption="smile", class_tokens="sks girl"), CaptionRules("sks", "girl")) == "sks, smile"


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
        "print(process_caption(one, CaptionRules('sks', shuffle=True), seed=5, epoch=3, repeat=2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == drawn(TAGS, CaptionRules("sks", shuffle=True), seed=5, epoch=3, repeat=2)


# --- parts for the page ---


def test_parts_tell_what_each_is():
    rules = CaptionRules("sks", keep_tokens=2, shuffle=True)
    kinds = [("sks", "trigger", ""), ("a", "kept", ", "), ("b", "shuffled", ", "), ("c", "shuffled", ", ")]
    assert caption_parts(record(caption="a, b, c"), rules) == kinds
    assert caption_parts(record(caption="a,b"), CaptionRules()) == [("a", "plain", ""), ("b", "plain", ",")]
    assert caption_parts(record(class_tokens="girl"), CaptionRules("sks")) == [("sks", "trigger", ""), ("girl", "class", " ")]
    assert caption_parts(record(class_tokens="girl"), CaptionRules()) == [("girl", "class", "")]
    assert caption_parts(record(), CaptionRules()) == []


words = st.text("ab 画,|{}\n;é", max_size=30)
shares = st.sampled_from([0.0, 0.4, 1.0])
many_rules = st.builds(
    CaptionRules,
    trigger_word=st.sampled_from(["", "sks", "a", "sks, x"]),
    class_tokens=st.sampled_from(["", "girl", "a {b|c}, girl"]),
    keep_tokens=st.integers(0, 3),
    shuffle=st.booleans(),
    dropout_rate=shares,
    separator=st.sampled_from([",", ";", "|"]),
    prefix=st.sampled_from(["", "p,", "a |||"]),
    suffix=st.sampled_from(["", ", s ||| z"]),
    keep_tokens_separator=st.sampled_from(["", "|||"]),
    secondary_separator=st.sampled_from(["", ";;"]),
    wildcard=st.booleans(),
    tag_dropout_rate=shares,
    dropout_every_n_epochs=st.integers(0, 3),
    token_warmup_min=st.integers(0, 3),
    token_warmup_step=st.sampled_from([0.0, 0.5, 5.0]),
)


@given(words, st.booleans(), many_rules, st.integers(1, 4), st.integers(0, 12))
def test_parts_are_the_caption_that_is_trained_on(caption, written, rules, epoch, step):
    one = record(caption=caption) if written else record(class_tokens=caption.replace("\n", ""))
    moment = {"seed": 1, "epoch": epoch, "repeat": 1, "step": step, "total_steps": 12}
    final = process_caption(one, rules, **moment)
    assert "".join(part.before + part.text for part in caption_parts(one, rules, **moment)) == final
    assert "".join(part.before + part.text for part in caption_parts(one, rules)) == plain_caption(one, rules)
    if rules.trigger_word in ("sks", "a") and not rules.secondary_separator:
        assert final == "" or contains_trigger(final, rules.trigger_word)


@given(words, many_rules)
def test_a_caption_that_cannot_vary_never_does(caption, rules):
    if not rules.varies:
        read = {drawn(caption, rules, seed=seed, epoch=seed, repeat=seed) for seed in range(5)}
        assert read == {plain_caption(record(caption=caption), rules)}


def test_no_option_changes_what_another_one_draws():
    long = ", ".join(f"tag{number}" for number in range(12))
    for epoch in range(1, 20):
        whole = drawn(long, CaptionRules(shuffle=True), epoch=epoch).split(", ")
        thinned = drawn(long, CaptionRules(shuffle=True, tag_dropout_rate=0.5), epoch=epoch).split(", ")
        assert thinned == [tag for tag in whole if tag in thinned]
        assert drawn("{x}, " + long, CaptionRules(shuffle=True, wildcard=True), epoch=epoch) == drawn(
            "x, " + long, CaptionRules(shuffle=True), epoch=epoch
        )


def test_parts_are_dropped_as_often_as_asked_for():
    left = sum(len(drawn(TAGS, CaptionRules(tag_dropout_rate=0.25), epoch=epoch).split(", ")) for epoch in range(500))
    assert 0.70 < left / (500 * 6) < 0.80


def test_pictures_of_the_class_get_no_trigger_word():
    assert plain_caption(record(class_tokens="girl", is_reg=True), CaptionRules("sks")) == "girl"
    assert process_caption(record(caption="smile", is_reg=True), CaptionRules("sks"), seed=1, epoch=1, repeat=0) == "smile"


def test_each_option_of_the_config_reaches_the_rules():
    data = {
        "trigger_word": "sks",
        "class_tokens": "girl",
        "keep_tokens": 2,
        "shuffle_caption": True,
        "caption_dropout_rate": 0.1,
        "caption_separator": ";",
        "caption_prefix": "p",
        "caption_suffix": "s",
        "keep_tokens_separator": "|||",
        "secondary_separator": ";;;",
        "enable_wildcard": True,
        "caption_tag_dropout_rate": 0.2,
        "caption_dropout_every_n_epochs": 3,
        "token_warmup_min": 4,
        "token_warmup_step": 5.0,
    }
    wanted = CaptionRules("sks", "girl", 2, True, 0.1, ";", "p", "s", "|||", ";;;", True, 0.2, 3, 4, 5.0)
    assert rules_from(build({"data": data}).data) == wanted


@pytest.mark.parametrize(
    ("caption", "options", "tags"),
    [
        ("vase, |||, blue, round", {"shuffle": True, "keep_tokens_separator": "|||"}, ["vase", "blue", "round"]),
        ("vase ||| tall; red", {"separator": ";", "shuffle": True, "keep_tokens_separator": "|||"}, ["vase", "tall", "red"]),
        ("vase ||| b", {"keep_tokens_separator": "|||"}, ["vase", "b"]),
        ("vase, {red|blue}, shiny", {"wildcard": True}, ["vase", "red", "shiny", "blue"]),
        ("{tall|low|wide} {red|blue} vase", {"wildcard": True}, ["tall red vase", "low blue vase", "wide red vase"]),
        ("{{x}}, {a|b}", {"wildcard": True}, ["{x}", "a", "b"]),
        ("{red|blue} vase", {}, ["{red|blue} vase"]),
        ("one, two\nthree, two", {"wildcard": True}, ["one", "two", "three"]),
        ("one\nthree", {}, ["one"]),
        ("a;;;b, c", {"secondary_separator": ";;;"}, ["a", "b", "c"]),
        ("a, a , b,,", {}, ["a", "b"]),
        ("", {"wildcard": True}, []),
    ],
)
def test_the_tags_of_a_caption_are_what_may_be_read_without_marks(caption, options, tags):
    rules = CaptionRules(**options)
    assert caption_tags(record(caption=caption), rules) == tags
    read = {drawn(caption, rules, repeat=repeat) for repeat in range(60)}
    assert rules.keep_tokens_separator or all(any(tag in text for text in read) for tag in tags)


# --- what their writer may not expect ---


@pytest.mark.parametrize(
    ("caption", "rules", "option"),
    [
        ("a ||| b", CaptionRules(keep_tokens_separator="|||"), "data.keep_tokens_separator"),
        ("a ||| b", CaptionRules(keep_tokens_separator="|||", shuffle=True), None),
        ("a, b", CaptionRules(keep_tokens_separator="|||"), None),
        ("a\nb", CaptionRules(wildcard=True, prefix="p"), "data.enable_wildcard"),
        ("a\nb", CaptionRules(wildcard=True), None),
        ("a\nb", CaptionRules(prefix="p"), None),
        ("a\n", CaptionRules(wildcard=True, suffix="s"), None),
    ],
)
def test_what_options_do_to_captions_unexpectedly_is_told(caption, rules, option):
    told = list(caption_notes([record(caption=caption), record("b.png", caption=caption)], lambda _: rules))
    assert [path for path, _ in told] == ([] if option is None else [option])
    assert all(message.values["count"] == 2 for _, message in told)


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


@pytest.mark.parametrize("data", [b"a cat\0, hat", b"\0a cat, a hat", b"a cat, hat\0\0", "猫\0, hat".encode()])
def test_a_nul_does_not_turn_a_caption_into_other_letters(data):
    assert decode_text(data) == data.decode("utf-8")


@given(st.binary(max_size=60))
def test_no_bytes_at_all_stop_the_reading(data):
    assert isinstance(decode_text(data), str)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff")))
def test_utf_8_is_never_taken_for_something_else(text):
    assert decode_text(text.encode("utf-8")) == text


def test_a_caption_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.txt"):
        read_caption(tmp_path / "a.txt")


def test_writing_a_caption_gives_the_old_text_back(tmp_path):
    path = tmp_path / "a.txt"
    assert write_caption(path, "新, one") == ""
    path.write_bytes("一个女孩，红色的头发".encode("gb18030"))
    assert write_caption(path, "new") == "一个女孩，红色的头发"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
