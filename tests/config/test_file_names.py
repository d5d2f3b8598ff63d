"""Names that every system takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.file_names import name_problem, slug

GOOD = ["mika", "米卡 v2", "a.b", "sks-crescent_1", "ü", "console", "nulls", "COM10", "x" * 150]
BAD = [
    "",
    " ",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "C:x",
    "a<b",
    "a>b",
    'a"b',
    "a|b",
    "a?b",
    "a*b",
    "a\nb",
    "a\x00",
    "a\x7f",
    "name.",
    "name ",
]
BAD += [" name", "CON", "con", "nul.txt", "Lpt1", "COM¹", "aux.a.b", "x" * 151, "米" * 60, "mika.safetensors", "\ud800"]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_has_no_problem_and_stays_as_it_is(name):
    assert name_problem(name) is None


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused_and_a_good_one_is_made_of_it(name):
    try:
        assert name_problem(name) is not None
    except UnicodeEncodeError:
        pytest.fail("a lone surrogate must be refused before it is encoded")
    assert name_problem(slug(name)) is None


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_whatever_the_text_a_name_comes_out_of_it(text):
    name = slug(text)
    assert name_problem(name) is None
    assert not set(name) & set(',;<>:"')
    assert slug(name) == name


@pytest.mark.parametrize(
    "text, name",
    [("sks crescent", "sks_crescent"), ("米卡", "米卡"), ("a/b: c", "a_b_c"), ("...", "lora"), ("con", "con_"), ("NUL.x", "NUL_x")],
)
def test_a_name_keeps_what_it_can(text, name):
    assert slug(text) == name
