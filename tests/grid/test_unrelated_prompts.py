"""What a network should leave alone."""

from __future__ import annotations

import pytest

from lora_trainer.grid.rank import PROMPTS
from lora_trainer.grid.score import unrelated_prompts, without_subject


@pytest.mark.parametrize(
    ("caption", "trigger", "class_words", "expected"),
    [
        ("a sks crescent on a white background", "sks", "sks crescent", "a picture on a white background"),
        ("a sks crescent on a white background", "", "sks crescent", "a picture on a white background"),
        ("a sks crescent on a white background", "sks", "", "a picture crescent on a white background"),
        ("photo of mika, smiling", "mika", "girl", "photo of picture, smiling"),
        ("mika, girl, beach", "mika", "girl", "picture, beach"),
        ("photo of Mika at the sea", "mika", "", "photo of picture at the sea"),
        ("sks crescent", "sks", "sks crescent", None),
        ("sks", "sks", "", None),
        ("a mikado board", "mika", "", None),
        ("a boat and a crescent", "sks", "crescent", None),
        ("a boat", "", "", None),
    ],
)
def test_the_subject_is_taken_out_of_a_caption(caption, trigger, class_words, expected):
    assert without_subject(caption, trigger, class_words) == expected


def test_there_are_eight_different_prompts_none_with_the_trigger():
    captions = [f"sks cat number {number}" for number in range(20)]
    for found in (unrelated_prompts(captions, "sks", "cat"), unrelated_prompts([], "sks", ""), unrelated_prompts(captions, "", "")):
        assert len(found) == len(set(found)) == PROMPTS
        assert not any("sks" in prompt for prompt in found)
    assert unrelated_prompts(captions, "sks", "cat")[:2] == ["picture number 5", "picture number 15"]
