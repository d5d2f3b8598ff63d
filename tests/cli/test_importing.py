"""The verb import: a config that trains, a count of every key, and no file lost."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from lora_trainer.cli.main import main
from lora_trainer.config.files import read_config

GOLDEN = Path(__file__).parents[1] / "config" / "importing"


def test_every_key_is_told_and_the_counts_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "mine.toml"
    assert main(["import", str(GOLDEN / "kohya_ss.json"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    for key in json.loads((GOLDEN / "kohya_ss.json").read_text(encoding="utf-8")):
        assert f"  {key} = " in told
    assert "77 keys: " in told and told.count("->") + told.count("  (") >= 77
    assert read_config(out).network.dim == 32


def test_the_document_holds_the_same_and_reasons_in_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["import", str(GOLDEN / "sd_scripts.toml"), "--out", str(tmp_path / "a.toml"), "--json", "--lang", "zh_CN"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keys"] == len(found["taken"]) + len(found["left"]) == 29 and found["kind"] == "sd-scripts"
    assert any("一" <= sign <= "鿿" for sign in found["left"][0]["why"])
    assert found["filled"] == [{"path": "data.enable_bucket", "value": False}, {"path": "save.precision", "value": "float"}]


def test_the_text_itself_and_standard_input_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = '[{"instance_data_dir": "/data/mika", "instance_prompt": "sks girl"}]'
    assert main(["import", text, "--out", str(tmp_path / "a.toml")]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(["import", "-", "--out", str(tmp_path / "b.toml")]) == 0
    assert (tmp_path / "a.toml").read_bytes() == (tmp_path / "b.toml").read_bytes()


def test_a_file_that_is_there_is_not_replaced_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mine.toml"
    out.write_text("# mine", encoding="utf-8")
    assert main(["import", str(GOLDEN / "concepts.json"), "--out", str(out)]) == 2
    assert out.read_text(encoding="utf-8") == "# mine" and "--overwrite" in capsys.readouterr().err
    assert main(["import", str(GOLDEN / "concepts.json"), "--out", str(out), "--overwrite"]) == 0
    assert "image_dir" in out.read_text(encoding="utf-8")


def test_what_is_no_settings_file_is_no_success_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for wrong, status in (('{"a": 1}', 1), (str(tmp_path / "none.json"), 2)):
        assert main(["import", wrong, "--out", str(tmp_path / "mine.toml")]) == status
        assert capsys.readouterr().err and not (tmp_path / "mine.toml").exists()


def test_a_file_of_which_nothing_is_taken_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    preset = tmp_path / "preset.toml"
    preset.write_text("enable_conv = true\n[module_algo_map.CrossAttention]\nfactor = 16\n", encoding="utf-8")
    for wrong in (str(preset), '{"sdxl": true, "LyCORIS_preset": "full"}'):
        assert main(["import", wrong, "--out", str(tmp_path / "mine.toml")]) == 1
        assert capsys.readouterr().err and not (tmp_path / "mine.toml").exists()


def test_a_script_is_read_and_what_it_does_not_tell_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    script = tmp_path / "train.sh"
    script.write_text(
        "dim=12\naccelerate launch train_network.py --network_dim=$dim \\\n --output_dir=$HOME/x --learning_rate 1e-4\n", encoding="utf-8"
    )
    assert main(["import", str(script), "--out", str(tmp_path / "a.toml")]) == 0
    told = capsys.readouterr().out
    assert "output_dir = $HOME/x  (It depends on" in told and "3 keys: 2 taken, 1 not taken" in told
    assert read_config(tmp_path / "a.toml").network.dim == 12
