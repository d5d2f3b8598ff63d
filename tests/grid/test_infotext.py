"""The infotext of a cell; read back by the host's rules, written down here from its documentation."""

from __future__ import annotations

import json

from lora_trainer.grid.painter import infotext
from lora_trainer.grid.tags import parse_template
from lora_trainer.train.previews.preview_prompts import SampleRequest

REQUEST = SampleRequest("", negative="blurry, dark", width=512, height=768, seed=7, cfg=7.0, steps=25, sampler="euler_a", clip_skip=2)


def parse_infotext(text: str) -> dict[str, str]:
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


def test_one_picture_is_sent_with_its_own_file_and_weight():
    values = parse_infotext(infotext(parse_template("sks", "moon").fill("moon-000004", 0.6), REQUEST))
    assert values["prompt"] == "<lora:moon-000004:0.6> sks" and values["negative"] == "blurry, dark"
    assert (values["Steps"], values["Sampler"], values["CFG scale"], values["Seed"]) == ("25", "Euler a", "7", "7")
    assert (values["Size"], values["Clip skip"]) == ("512x768", "2")
