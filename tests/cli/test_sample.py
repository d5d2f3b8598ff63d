"""sample: networks that the prompt names as a WebUI does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file

from lora_trainer import assets
from lora_trainer.adapters.files.checkpoint_layers import checkpoint_layers
from lora_trainer.cli.main import main
from tests.network_tools.made import chosen, state_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network called mika."""
    monkeypatch.chdir(tmp_path)
    layers = chosen(assets.toy_checkpoint())
    assert checkpoint_layers(assets.toy_checkpoint())[0].family == "sd1"
    save_file({key: tensor.half() for key, tensor in state_of(layers, alpha=8.0).items()}, "mika.safetensors")
    torch.manual_seed(0)
    return tmp_path


def drawn(capsys: pytest.CaptureFixture[str], out: str, prompt: str, *more: str) -> tuple[Image.Image, dict[str, object]]:
    words = ["sample", "--model", str(assets.toy_checkpoint()), "--prompt", prompt, "--steps", "2", "--out", out, "--json", *more]
    assert main(words) == 0
    return Image.open(out).convert("RGB"), json.loads(capsys.readouterr().out)


def test_a_network_in_the_prompt_is_used_as_one_given_by_its_file(here: Path, capsys: pytest.CaptureFixture[str]):
    plain, _ = drawn(capsys, "a.png", "a vase")
    named, found = drawn(capsys, "b.png", "a vase <lora:mika:0.8>")
    given, _ = drawn(capsys, "c.png", "a vase", "--lora", "mika.safetensors:0.8")
    assert ImageChops.difference(named, given).getbbox() is None
    assert ImageChops.difference(named, plain).getbbox() is not None
    assert found["loras"] == [{"file": "mika.safetensors", "weight": 0.8}]
    assert "is read as --lora mika.safetensors:0.8" in str(found["notes"])


def test_a_network_that_is_not_there_is_named_with_the_remedy(here: Path, capsys: pytest.CaptureFixture[str]):
    _, found = drawn(capsys, "a.png", "a vase <lora:nobody:0.8> <hypernet:x:1>")
    assert found["loras"] == []
    for tag in ("<lora:nobody:0.8>", "<hypernet:x:1>"):
        assert any(tag in str(note) and "--lora FILE:WEIGHT" in str(note) for note in found["notes"])  # type: ignore[attr-defined]


def test_a_network_of_mixed_ranks_draws(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["network", "resize", "mika.safetensors", "--rank", "1", "--block", "mid=4", "--out", "mixed.safetensors"]) == 0
    capsys.readouterr()
    plain, _ = drawn(capsys, "a.png", "a vase")
    mixed, _ = drawn(capsys, "b.png", "a vase", "--lora", "mixed.safetensors")
    assert ImageChops.difference(plain, mixed).getbbox() is not None


def test_a_model_can_be_said_to_be_of_rectified_flow_which_has_a_shift_and_samplers_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    pictures = [
        drawn(capsys, f"{number}.png", "a vase", *more)[0]
        for number, more in enumerate([(), ("--prediction", "flow"), ("--prediction", "flow", "--flow-shift", "1")])
    ]
    for one, other in itertools.combinations(pictures, 2):
        assert ImageChops.difference(one, other).getbbox() is not None
    words = ["sample", "--model", str(assets.toy_checkpoint()), "--prompt", "x", "--out", "x.png", "--prediction", "flow"]
    for wrong, told in ((["--sampler", "euler_a"], "Heun"), (["--flow-shift", "0"], "too small")):
        assert main([*words, *wrong]) == 2
        assert told in capsys.readouterr().err
    assert not Path("x.png").exists()
