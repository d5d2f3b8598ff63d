"""nan and inf are no numbers, wherever a user writes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.cli.main import main
from lora_trainer.errors import TrainerError
from lora_trainer.train.previews.prompt_networks import split_tags


def status(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e999", "abc", "80%"])
def test_a_weight_that_is_no_number_is_named_as_that(tmp_path: Path, monkeypatch, capsys, value: str):
    monkeypatch.chdir(tmp_path)
    Path("in.safetensors").write_bytes(b"x")
    assert status("network", "merge", f"in.safetensors:{value}", "in.safetensors", "--out", "a.safetensors") == 2
    assert f"FILE[:WEIGHT]: the weight {value} is not a number" in capsys.readouterr().err
    assert status("sample", "--model", "m", "--lora", f"in.safetensors:{value}", "--prompt", "x", "--out", "y.png") == 2
    assert f"--lora: the weight {value} is not a number" in capsys.readouterr().err
    with pytest.raises(TrainerError, match="not one number"):
        split_tags(f"a moon <lora:moon:{value}>")


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--model", "m", "--prompt", "x", "--out", "y.png", "--cfg", "nan"],
        ["wizard", "--subject", "style", "--vram", "inf"],
        ["network", "resize", "a.safetensors", "--out", "b.safetensors", "--energy", "nan"],
        ["network", "extract", "a", "b", "--out", "b.safetensors", "--energy", "inf"],
    ],
)
def test_an_argument_that_is_no_number_is_wrong_usage(words: list[str], capsys):
    assert status(*words) == 2
    assert f"'{words[-1]}'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "1.5", "x"])
def test_epochs_are_whole_numbers(tmp_path: Path, monkeypatch, capsys, value: str):
    from lora_trainer.jobs.folder import RunFolder

    monkeypatch.chdir(tmp_path)
    RunFolder.create(tmp_path / "runs", "moon")
    assert status("grid", "moon", "--prompt", "x", "--epochs", f"1,{value}") == 2
    assert f"1,{value} is not a list of" in capsys.readouterr().err
