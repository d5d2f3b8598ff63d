"""JSON and TOML from outside: every fault is a ValueError, and none takes long."""

from __future__ import annotations

import math
import time
from contextlib import suppress

import pytest

from lora_trainer import parsing
from lora_trainer.parsing import parse_json, parse_toml, read_json_object

DEEP = 100_000


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[" * 60 + "]" * 60, '{"a":' * 60 + "1" + "}" * 60, "", "{", "\0"])
def test_json_that_is_deep_or_damaged_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * DEEP,
        "a = " + "[" * 60 + "]" * 60,
        "a = " + "{a = " * 60 + "1" + "}" * 60,
        ".".join("a" * 20_000) + " = 1",
        "[" + ".".join("a" * 100) + "]",
        "#" + "x" * 50_000_000,
        'a = "\\',
        "a = 1\na = 2",
        "[a",
        "a = \0",
    ],
)
def test_toml_that_is_deep_large_or_damaged_is_a_value_error(text):
    begun = time.thread_time()
    with pytest.raises(ValueError):
        parse_toml(text)
    assert time.thread_time() - begun < 5.0, "tomlkit needs minutes for some of these"


def test_a_number_of_thousands_of_digits_is_refused_or_infinite():
    with suppress(ValueError):
        assert parse_toml("a = 9" + "9" * 5000) == {"a": math.inf}


def test_what_tomlkit_takes_minutes_for_is_refused_where_there_is_nothing_else():
    for text in (
        "".join(f"[a.b{number}]\n" for number in range(2000)),
        "".join(f"a.k{number} = 1\n" for number in range(2000)),
        "k = 1\n" * 40_000,
    ):
        begun = time.thread_time()
        with pytest.raises(parsing.TomlError):
            parsing._with_tomlkit(text)
        assert time.thread_time() - begun < 1.0


@pytest.mark.parametrize("parse", [parse_toml, parsing._with_tomlkit])
def test_both_parsers_give_plain_values_and_the_line_of_an_error(parse):
    text = "# a\nb = [1, 2.5, 'x']\n[c]\n'd.e' = {f = true}\n[[g.h]]\ni = \"#\"\n[[g.h]]\n"
    assert parse(text) == {"b": [1, 2.5, "x"], "c": {"d.e": {"f": True}}, "g": {"h": [{"i": "#"}, {}]}}
    for wrong in ("a = 1\nb = \nc = 3\n", "a = 1\na = 2\n"):
        with pytest.raises(parsing.TomlError) as refused:
            parse(wrong)
        assert refused.value.line == 2 and "line" not in str(refused.value)


def test_a_side_file_that_is_damaged_is_as_good_as_none(tmp_path):
    file = tmp_path / "moon.json"
    for content in (b"[" * DEEP, b"[1]", b"null", b"{", b"\xff\xfe", b"{" + b" " * 5_000_000 + b"}", b'{"a": ' + b"9" * 5000 + b"}"):
        file.write_bytes(content)
        assert read_json_object(file) == {}
    file.write_bytes(b'{"a": 1}')
    assert read_json_object(file) == {"a": 1}
    assert read_json_object(tmp_path) == {} == read_json_object(tmp_path / "nothing.json")
