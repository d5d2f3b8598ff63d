"""Where the run's own network stands in a prompt."""

from __future__ import annotations

import pytest

from lora_trainer.errors import TrainerError
from lora_trainer.grid.tags import parse_template
from lora_trainer.train.previews.prompt_networks import split_tags

OPEN = "<lora:moon-NUM:STRENGTH>"


def test_a_recipe_is_filled_with_file_and_weight():
    assert parse_template(f"photo of {OPEN} sks", "moon").fill("moon-000003", 0.6) == "photo of <lora:moon-000003:0.6> sks"


@pytest.mark.parametrize("written", ["<lora:moon-000003:0.8>", "<lora:moon:1>", "<lora:moon-NUM:0.8>", "<lora:moon-step00000012:1>"])
def test_a_tag_of_this_run_is_taken_for_the_recipe(written):
    assert parse_template(f"a {written} b", "moon").prompt == f"a {OPEN} b"


def test_a_prompt_without_a_tag_gets_it_in_front():
    assert parse_template("photo of sks", "moon").prompt == f"{OPEN} photo of sks"


def test_other_networks_stay():
    template = parse_template(f"{OPEN} sks <lora:light:0.5>", "moon")
    assert template.without_network() == "sks <lora:light:0.5>"
    assert split_tags(template.without_network()) == ("sks", [("light", 0.5)])


def test_a_name_of_another_run_is_refused_with_the_right_one():
    with pytest.raises(TrainerError, match=r"sun-NUM.*moon"):
        parse_template("<lora:sun-NUM:STRENGTH> x", "moon")


def test_the_same_network_twice_is_refused():
    with pytest.raises(TrainerError, match="2 times"):
        parse_template(f"{OPEN} {OPEN}", "moon")


def test_a_network_without_weight_counts_one():
    assert split_tags("a <lora:light> b") == ("a b", [("light", 1.0)])


@pytest.mark.parametrize("tag", ["<lora:light:much>", "<lora:light:0.5:1>", "<lora:light:>"])
def test_a_weight_that_is_not_one_number_is_refused(tag):
    with pytest.raises(TrainerError, match="not one number"):
        split_tags(f"a {tag}")


def test_equal_weights_for_both_parts_are_one_weight():
    assert split_tags("<lora:light:te=0.5:unet=0.5>")[1] == [("light", 0.5)]
