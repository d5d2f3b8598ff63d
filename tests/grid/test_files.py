"""Which file stands for which epoch, and the user's own choice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lora_trainer.errors import TrainerError
from lora_trainer.grid.files import read_run_files
from lora_trainer.grid.record import set_preferred_weight
from lora_trainer.jobs.folder import RunFolder


def made_up(root: Path, *files: tuple[str, int, int]) -> RunFolder:
    """A run that saved files (name, epoch, step), each with its own content."""
    folder = RunFolder.create(root / "runs", "moon")
    listed = []
    for name, epoch, step in files:
        path = root / "loras" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        listed.append({"path": str(path), "sha256": sha256, "epoch": epoch, "step": step, "final": name == "moon", "validation": 1 / step})
    folder.manifest_file.write_text(json.dumps({"files": listed}), encoding="utf-8")
    return folder


def numbers(folder: RunFolder) -> list[tuple[int, str]]:
    return [(file.epoch, file.number) for file in read_run_files(folder.path).files]


def test_each_epoch_is_its_numbered_file(tmp_path: Path):
    folder = made_up(tmp_path, ("moon-000001", 1, 5), ("moon-step00000007", 2, 7), ("moon-000002", 2, 10), ("moon", 2, 10))
    assert numbers(folder) == [(1, "000001"), (2, "000002")]
    assert read_run_files(folder.path).losses() == {1: 0.2, 2: 0.1}


def test_a_run_that_was_stopped_in_an_epoch_has_the_file_of_that_step(tmp_path: Path):
    folder = made_up(tmp_path, ("moon-000001", 1, 5), ("moon-step00000006", 2, 6), ("moon-step00000008", 2, 8))
    assert numbers(folder) == [(1, "000001"), (2, "step00000008")]


def test_a_run_with_one_final_file_has_one_row(tmp_path: Path):
    found = read_run_files(made_up(tmp_path, ("moon", 4, 20)).path)
    assert [(file.epoch, file.number, file.stem) for file in found.files] == [(4, "", "moon")] and found.name == "moon"


def test_a_run_that_saved_nothing_is_refused(tmp_path: Path):
    with pytest.raises(TrainerError, match="has saved no file"):
        read_run_files(RunFolder.create(tmp_path, "empty").path)


def test_a_run_whose_files_are_all_gone_says_which(tmp_path: Path):
    folder = made_up(tmp_path, ("moon-000001", 1, 5))
    (tmp_path / "loras" / "moon-000001.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"moon-000001\.safetensors is gone"):
        read_run_files(folder.path)


def test_a_relative_output_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = made_up(tmp_path, ("moon-000001", 1, 5))
    manifest = folder.manifest()
    manifest["files"][0]["path"] = "loras/moon-000001.safetensors"
    folder.manifest_file.write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "somewhere").mkdir()
    monkeypatch.chdir(tmp_path / "somewhere")
    assert numbers(folder) == [(1, "000001")]


def test_the_choice_is_the_preferred_weight_and_keeps_the_users_notes(tmp_path: Path):
    folder = made_up(tmp_path, ("moon-000001", 1, 5), ("moon-000002", 2, 10), ("moon", 2, 10))
    beside = tmp_path / "loras" / "moon-000002.json"
    beside.write_text(json.dumps({"notes": "月亮", "preferred weight": 0}), encoding="utf-8")
    kept = set_preferred_weight(folder.path, 2, 0.8)
    assert json.loads(beside.read_text(encoding="utf-8")) == {"notes": "月亮", "preferred weight": 0.8}
    assert kept["prompt"] == "<lora:moon-000002:0.8>"
    assert folder.info()["chosen"] == {"epoch": 2, "weight": 0.8}


def test_a_choice_whose_file_is_gone_is_refused(tmp_path: Path):
    with pytest.raises(TrainerError, match="epoch 3 of moon has no file"):
        set_preferred_weight(made_up(tmp_path, ("moon-000001", 1, 5)).path, 3, 0.8)
