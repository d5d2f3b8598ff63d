"""network info, verify, resize, merge, extract, convert, edit as users type them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lora_trainer import assets
from lora_trainer.cli.main import main
from tests.network_tools.made import WORDS, chosen, state_of, write


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    layers = {name: layer for name, layer in chosen(assets.toy_checkpoint()).items() if "mid_block" in name}
    return write(tmp_path / "moon.safetensors", state_of(layers), WORDS)


def json_of(capsys, *words: object) -> dict:
    import json

    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_and_verify_print_one_document(lora, capsys):
    assert json_of(capsys, "network", "info", lora)["ranks"] == [{"value": 4, "modules": 12}]
    found = json_of(capsys, "network", "verify", lora, "--model", assets.toy_checkpoint())
    assert (found["matched"], found["unmatched"], found["family"]) == (12, 0, "sd1")


def test_every_tool_writes_its_file_and_leaves_the_input(lora, tmp_path, capsys):
    before = hashlib.sha256(lora.read_bytes()).hexdigest()
    model, merged = assets.toy_checkpoint(), tmp_path / "model.safetensors"
    assert json_of(capsys, "network", "resize", lora, "--block", "mid=2", "--out", tmp_path / "r.safetensors")["energy"] < 1
    assert json_of(capsys, "network", "merge", f"{lora}:0.5", lora, "--out", tmp_path / "m.safetensors")["rank"] == 8
    assert json_of(capsys, "network", "merge", f"{lora}:0:1", "--into", model, "--out", merged)["layers"] == 12
    words = ("network", "extract", model, merged, "--rank", "4", "--precision", "float", "--out", tmp_path / "x.safetensors")
    assert json_of(capsys, *words)["energy"] > 0.999
    assert json_of(capsys, "network", "convert", lora, "--to", "peft", "--out", tmp_path / "p.safetensors")["layers"] == 12
    edited = json_of(capsys, "network", "edit", lora, "--trigger", "sks moon", "--out", tmp_path / "e.safetensors")
    assert edited["metadata"]["modelspec.trigger_phrase"] == "sks moon"
    assert hashlib.sha256(lora.read_bytes()).hexdigest() == before


def test_verify_ends_with_one_where_a_layer_does_not_fit(lora, tmp_path):
    state = state_of({name: layer for name, layer in chosen(assets.toy_checkpoint()).items() if "mid_block" in name})
    odd = {key.replace("proj_in", "proj_odd"): tensor for key, tensor in state.items()}
    assert main(["network", "verify", str(write(tmp_path / "odd.safetensors", odd))]) == 1


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["resize", "LORA", "--rank", "2", "--out", "LORA"], 2),
        (["resize", "LORA", "--out", "x.safetensors"], 2),
        (["resize", "LORA", "--energy", "2", "--out", "x.safetensors"], 2),
        (["resize", "LORA", "--block", "mid", "--out", "x.safetensors"], 2),
        (["merge", "LORA:much", "--out", "x.safetensors"], 2),
        (["merge", "LORA:nan", "--out", "x.safetensors"], 2),
        (["merge", "LORA:0.5:-inf", "--out", "x.safetensors"], 2),
        (["merge", "LORA:1e999:1", "--out", "x.safetensors"], 2),
        (["edit", "LORA", "--out", "x.safetensors"], 2),
        (["edit", "LORA", "--set", "no sign", "--out", "x.safetensors"], 2),
        (["info", "missing.safetensors"], 1),
        (["verify", "LORA", "--family", "sd9"], 1),
    ],
)
def test_wrong_words_and_wrong_files_end_with_their_own_status(words, status, lora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["network", *(word.replace("LORA", str(lora)) for word in words)]) == status
    assert not (tmp_path / "x.safetensors").exists()


def test_a_trained_file_is_imported_as_settings(lora, tmp_path, capsys):
    found = json_of(capsys, "import", lora, "--out", tmp_path / "again.toml")
    assert found["kind"] == "metadata"
    assert "dim = 4" in (tmp_path / "again.toml").read_text(encoding="utf-8")
