"""The text that fills the host's own page; read back by the host's rules, written down here from its documentation."""

from __future__ import annotations

import csv
import io
import json
from itertools import chain

import pytest

from lora_trainer.grid.tags import recipe_of
from lora_trainer.grid.xyz import EPOCH, WEIGHT, picture_text, plot_text
from lora_trainer.train.previews.preview_prompts import SampleRequest

REQUEST = SampleRequest("", negative="blurry, dark", width=512, height=768, seed=7, cfg=7.0, steps=25, sampler="euler_a", clip_skip=2)
NUMBERS = ["000001", "000004", "000010"]
WEIGHTS = [0.2, 0.6, 1.0]


def pasted(text: str) -> dict[str, str]:
    """Prompt, negative prompt and parameters, as the host takes an infotext apart."""
    *lines, rest = text.split("\n")
    pairs = {}
    while rest:
        key, _, rest = rest.partition(": ")
        if rest.startswith('"'):
            pairs[key], end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].removeprefix(", ")
        else:
            pairs[key], _, rest = rest.partition(", ")
    assert len(pairs) >= 3
    return {"prompt": lines[0], "negative": lines[1].removeprefix("Negative prompt: "), **pairs}


def values(text: str) -> list[str]:
    """An axis' values, as the host reads them."""
    return [value.strip() for value in chain.from_iterable(csv.reader(io.StringIO(text), skipinitialspace=True))]


def searched_and_replaced(found: dict[str, str]) -> list[str]:
    """Prompts of all cells by the host's Prompt S/R: the first value is replaced by each, first along X, then along Y."""
    prompts = []
    across, down = values(found["X Values"]), values(found["Y Values"])
    for y in down:
        for x in across:
            assert across[0] in found["prompt"]
            prompt = found["prompt"].replace(across[0], x)
            assert down[0] in prompt
            prompts.append(prompt.replace(down[0], y))
    return prompts


def test_the_trainers_own_axes_fill_the_open_places():
    found = pasted(plot_text(recipe_of("photo of <lora:moon-NUM:STRENGTH> sks", "moon"), REQUEST, NUMBERS, WEIGHTS, own_axes=True))
    assert found["prompt"] == "photo of <lora:moon-NUM:STRENGTH> sks" and found["negative"] == "blurry, dark"
    assert found["Script"] == "X/Y/Z plot"
    assert (found["X Type"], values(found["X Values"])) == (WEIGHT, ["0.2", "0.6", "1"])
    assert (found["Y Type"], values(found["Y Values"])) == (EPOCH, NUMBERS)
    assert (found["Steps"], found["Sampler"], found["CFG scale"], found["Seed"]) == ("25", "Euler a", "7", "7")
    assert (found["Size"], found["Clip skip"]) == ("512x768", "2")


def test_the_axes_are_those_that_the_host_was_given():
    from lora_trainer.host.a1111 import axes

    assert (EPOCH, WEIGHT) == (axes.EPOCH, axes.WEIGHT)
    assert axes.epochs(",".join(NUMBERS)) == NUMBERS


@pytest.mark.parametrize(
    "prompt",
    [
        "photo of <lora:moon-NUM:STRENGTH> sks",
        "photo of sks, (night:0.2), 0.2 and 000001",
        "<lora:moon-NUM:STRENGTH> sks <lora:light:0.2>",
        "moon moon-000001 <lora:light-000001:0.2>",
    ],
)
def test_search_and_replace_makes_the_same_cells_and_wastes_none(prompt):
    recipe = recipe_of(prompt, "moon")
    found = pasted(plot_text(recipe, REQUEST, NUMBERS, WEIGHTS, own_axes=False))
    assert found["X Type"] == found["Y Type"] == "Prompt S/R"
    expected = [recipe.filled(f"moon-{number}", weight) for number in NUMBERS for weight in WEIGHTS]
    assert searched_and_replaced(found) == expected


def test_a_plain_prompt_searches_for_number_and_weight_alone():
    found = pasted(plot_text(recipe_of("sks", "moon"), REQUEST, NUMBERS, WEIGHTS, own_axes=False))
    assert values(found["X Values"]) == ["0.2", "0.6", "1"] and values(found["Y Values"]) == NUMBERS


def test_one_picture_is_sent_with_its_own_file_and_weight():
    found = pasted(picture_text(recipe_of("sks", "moon"), REQUEST, "moon-000004", 0.6))
    assert found["prompt"] == "<lora:moon-000004:0.6> sks" and "Script" not in found
