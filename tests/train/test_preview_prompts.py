"""Preview prompts as sd-scripts writes them, and rows that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.config.build import build
from lora_trainer.errors import TrainerError
from lora_trainer.train.previews.preview_prompts import SampleRequest, parse_prompt_line
from lora_trainer.train.previews.prompt_networks import PromptNetworks, notes_of_host, notes_of_trainer
from lora_trainer.train.setup import preview_prompts

BASE = SampleRequest("", negative="dull", width=320, height=448, seed=9, cfg=6.0, steps=11, sampler="lms", clip_skip=2)


def config(**sample):
    return build({"seed": 9, "data": {"resolution": [320, 448]}, "sample": sample})


def test_every_option_of_a_line_is_read():
    line = "a sks, by -- the sea --n bad, --hands --w 512 --h 768 --d 18446744073709551615 --l 7.5 --s 28 --ss K_Euler_A"
    assert parse_prompt_line(line, BASE) == SampleRequest(
        "a sks, by -- the sea", "bad, --hands", 512, 768, 18446744073709551615, 7.5, 28, "euler_a", clip_skip=2
    )


def test_what_a_line_does_not_say_is_as_by_default():
    found = parse_prompt_line("a sks", BASE)
    assert (found.negative, found.width, found.height, found.seed, found.cfg, found.steps) == ("dull", 320, 448, 9, 6.0, 11)
    assert (found.sampler, found.clip_skip, found.max_token_length) == ("lms", 2, 75)


@pytest.mark.parametrize(("asked", "drawn"), [(501, 504), (515, 512), (1, 64), (99999, 4096), (512, 512)])
def test_sides_are_rounded_to_what_can_be_drawn(asked: int, drawn: int):
    found = parse_prompt_line(f"x --w {asked} --h {asked}", BASE)
    assert (found.width, found.height) == (drawn, drawn)


def test_steps_stay_within_1_and_1000_and_a_seed_below_0_is_another_each_time():
    assert [parse_prompt_line(f"x --s {steps}", BASE).steps for steps in (0, 5000)] == [1, 1000]
    seeds = {parse_prompt_line("x --d -1", BASE).seed for _ in range(4)}
    assert len(seeds) == 4 and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("option", ["--x 3", "--w wide", "--l nan", "--ss nothing"])
def test_an_option_that_cannot_be_read_is_refused_with_a_remedy(option: str):
    with pytest.raises(TrainerError) as caught:
        parse_prompt_line(f"x {option}", BASE)
    assert caught.value.problems[0].fix.text()


def test_a_bad_row_is_named_and_left_out_and_the_others_keep_their_places(tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_text("# c\ngood --cn pose.png\nbad --w wide\nlast\n", encoding="utf-8")
    found = preview_prompts(config(prompts=["one", "two --x 1"], prompt_file=str(file)))
    assert [(number, request.prompt) for number, request in found.requests] == [(0, "one"), (2, "good"), (4, "last")]
    notes = [note.text() for note in found.warnings]
    assert notes[0].startswith("prompt 2 is not drawn: ") and notes[2].startswith(f"{file}, line 3 is not drawn: ")
    assert notes[1] == f"{file}, line 2: --cn has no effect on models of this kind." and len(notes) == 3
    assert all(any("\u4e00" <= sign <= "\u9fff" for sign in note.text("zh_CN")) for note in found.warnings)


@pytest.mark.parametrize("ending", [".toml", ".json"])
def test_rows_of_files_mean_what_lines_mean(tmp_path: Path, ending: str):
    file = tmp_path / f"p{ending}"
    row = {"prompt": "a sks", "negative_prompt": "bad", "width": 70, "seed": 4, "scale": 3.5, "sample_steps": 6, "sample_sampler": "ddim"}
    text = "[[prompt.subset]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in row.items())
    file.write_text(json.dumps([row]) if ending == ".json" else text, encoding="utf-8")
    ((_, found),) = preview_prompts(config(prompt_file=str(file))).requests
    assert found == parse_prompt_line(
        "a sks --n bad --w 70 --d 4 --l 3.5 --s 6 --ss ddim", SampleRequest("", width=320, height=448, seed=9)
    )


@pytest.mark.parametrize("text", [None, '["a", 3]', "{", b"\xff\xfe\x00"], ids=["missing", "row", "broken", "bytes"])
def test_a_prompt_file_that_cannot_be_used_is_told_and_nothing_more(tmp_path: Path, text):
    file = tmp_path / "p.json"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    found = preview_prompts(config(prompts=["one"], prompt_file=str(file)))
    assert found.requests[0][1].prompt == "one" and len(found.warnings) == 1 and "p.json" in found.warnings[0].text()


def test_prompt_files_of_chinese_editors_are_read(tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_bytes("一只猫在海边\n".encode("gb18030"))
    assert preview_prompts(config(prompt_file=str(file))).requests[0][1].prompt == "一只猫在海边"


def test_null_in_a_prompt_file_means_not_given_and_a_list_is_named_and_left_out(tmp_path: Path):
    rows = [
        {"prompt": "a sks", "negative_prompt": None, "width": None},
        {"prompt": "a sks", "negative_prompt": ""},
        {"prompt": "a sks", "seed": None, "sample_sampler": None},
        {"prompt": ["x", "y"]},
        {"prompt": "b", "seed": True},
        {"prompt": "c", "controlnet_image": None, "scale": 3},
    ]
    file = tmp_path / "p.json"
    file.write_text(",\n".join(map(json.dumps, rows)).join("[]"), encoding="utf-8")
    found = preview_prompts(config(prompt_file=str(file)))
    requests = dict(found.requests)
    assert list(requests) == [0, 1, 2, 5] and requests[0] == requests[1]
    assert (requests[0].negative, requests[0].width, requests[2].seed, requests[5].cfg) == ("", 320, 9, 3.0)
    assert [note.text().partition(" is not")[0] for note in found.warnings] == [f"{file}, line 4", f"{file}, line 5"]
    assert '["x", "y"]' in found.warnings[0].text() and "prompt must be" in found.warnings[0].text()


def networks_in(folder: Path) -> PromptNetworks:
    """Two files: mika in the output folder, deep somewhere below the LoRA folder."""
    for place in ("out/mika", "loras/below/deep"):
        path = folder / f"{place}.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
    return PromptNetworks((folder / "nowhere", folder / "out"), folder / "loras", "own")


def test_a_network_in_a_prompt_is_found_by_its_name_and_taken_out_of_the_words(tmp_path: Path):
    networks, out, deep = networks_in(tmp_path), tmp_path / "out", tmp_path / "loras" / "below"
    read = networks.read("a  vase <lora:mika:0.8>, <lyco:deep> <3 <b>")
    assert read.text == "a vase , <3 <b>" and not read.missing_tags
    assert read.networks == (("<lora:mika:0.8>", out / "mika.safetensors", 0.8), ("<lyco:deep>", deep / "deep.safetensors", 1.0))
    assert networks.read("a  vase").text == "a  vase"
    assert networks.read("<lora:own:1> a").own_tags == ("<lora:own:1>",)


def test_a_network_is_found_by_the_name_in_its_header_as_in_a_webui(tmp_path: Path):
    networks = networks_in(tmp_path)
    path = tmp_path / "loras" / "moon-000004.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"ss_output_name": "moon"})
    assert networks.read("a <lora:moon:1>").networks == (("<lora:moon:1>", path, 1.0),)
    assert networks.for_host("a <lora:moon:1> <lora:own:1> <lora:nobody:1> <lora:mika:1> b") == "a <lora:moon:1> b"


@pytest.mark.parametrize("name", ["nobody", "../out/mika", "out/mika", "x" * 5000, "a\\b", "mi*a", "."])
def test_a_name_without_a_file_stays_in_the_words(tmp_path: Path, name: str):
    read = networks_in(tmp_path).read(f"a <lora:{name}:1>")
    assert read.text == f"a <lora:{name}:1>" and read.missing_tags == (f"<lora:{name}:1>",) and not read.networks


def test_networks_that_are_not_used_as_written_are_told_before_the_run(tmp_path: Path):
    prompts = [
        "a <lora:mika:0.8>",
        "a <lora:nobody:1>",
        "a <3 <b> --n <LyCO:bad:1>",
        "a <lora:own:1>",
        "a <lora:mika:much>",
        "a <hypernet:h:1>",
    ]
    parsed, networks = preview_prompts(config(prompts=prompts)), networks_in(tmp_path)
    notes = [note.text() for note in notes_of_trainer(parsed, networks)]
    starts = [
        "2: there is no file",
        "3: <LyCO:bad:1> is read",
        "4: <lora:own:1> names",
        "5 is not drawn: the weight",
        "6: <hypernet:h:1> is read",
    ]
    assert [note.startswith(f"prompt {start}") for note, start in zip(notes, starts, strict=True)] == [True] * 5
    notes = [note.text() for note in notes_of_host(parsed, networks)]
    starts = ["1: ", "2: ", "4: <lora:own:1> names", "5: "]
    assert [note.startswith(f"prompt {start}") for note, start in zip(notes, starts, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("line", "marks"),
    [
        ("a vase --n a,b --7 --w 64", "--7"),
        ("a vase --n bad --hands", "--hands"),
        ("a vase --width 64 --h 64", "--width"),
        ("a vase \u2014w 64 \u2013 h 64", "\u2014w, \u2013 h"),
        ("a vase -w 64 -n bad", "-w"),
        ("a well-known vase -- by the sea, 1-2 --- x", ""),
        ("a sun-dried, half--open vase, -1", ""),
    ],
)
def test_a_word_that_looks_like_an_option_and_is_none_is_named_and_the_picture_drawn(line: str, marks: str):
    found = preview_prompts(config(prompts=[line]))
    assert len(found.requests) == 1
    notes = [note.text() for note in found.warnings]
    assert notes == (
        [f"prompt 1: {marks} is no option and is read as a part of the text. Options are --n --w --h --d --l --s and --ss."] * bool(marks)
    )
