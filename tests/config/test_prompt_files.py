"""Prompt files in each form that sd-scripts reads, each row named by file and line."""

from __future__ import annotations

import pytest

from lora_trainer.config.prompt_files import rows_from_file, rows_from_lines
from lora_trainer.errors import TrainerError

TOML = """
[prompt]
width = 512
scale = 7.5
negative_prompt = "blurry"

[[prompt.subset]]
prompt = "a sks crescent"
seed = 3

[[prompt.subset]]
prompt = "by the sea"
width = 768
sample_sampler = "k_euler_a"
"""
JSON = """[
 "a sks crescent --d 3",
 {"prompt": "by the sea", "width": 768, "sample_steps": 12, "enum": 1}
]"""


def lines(rows) -> list[tuple[str, str]]:
    return [(str(row.source), row.to_line()) for row in rows]


def test_a_text_file_has_a_prompt_on_each_line_that_is_no_comment():
    text = "# mine\n\na sks crescent --d 3\n  # later\nby the sea\n"
    assert lines(rows_from_file(text, "p.txt")) == [("p.txt, line 3", "a sks crescent --d 3"), ("p.txt, line 5", "by the sea")]
    assert lines(rows_from_lines(text)) == [("prompt 1", "a sks crescent --d 3"), ("prompt 2", "by the sea")]


def test_toml_subsets_stand_over_what_holds_for_all():
    assert lines(rows_from_file(TOML, "p.toml", first=4)) == [
        ("p.toml, line 7", "a sks crescent --w 512 --l 7.5 --n blurry --d 3"),
        ("p.toml, line 11", "by the sea --w 768 --l 7.5 --n blurry --ss k_euler_a"),
    ]
    assert [row.index for row in rows_from_file(TOML, "p.toml", first=4)] == [4, 5]


def test_json_rows_are_lines_or_objects():
    assert lines(rows_from_file(JSON, "p.json")) == [
        ("p.json, line 2", "a sks crescent --d 3"),
        ("p.json, line 3", "by the sea --w 768 --s 12"),
    ]
    assert rows_from_file("[]", "p.json") == []


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [("p.toml", "[prompt]\nwidth = \n", 2), ("p.toml", "a = 1\n", 1), ("p.json", '["a",\n{]', 2), ("p.json", '{"prompt": "a"}', 1)],
)
def test_a_file_that_is_broken_is_named_with_the_line(name: str, text: str, line: int):
    with pytest.raises(TrainerError, match=rf"^sample.prompt_file: {name}, line {line}: ") as caught:
        rows_from_file(text, name)
    assert caught.value.problems[0].fix.text()
