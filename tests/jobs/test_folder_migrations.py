"""A run's folder carries a version; an older one is read in today's form and says so, a newer one as far as it is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_trainer.jobs import folder_migrations
from lora_trainer.jobs.folder import RunFolder, list_runs


def renamed(content: dict) -> dict:
    return {("files" if key == "weights" else key): value for key, value in content.items()}


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this program wrote version 3."""
    monkeypatch.setattr(folder_migrations, "VERSION", 3)
    monkeypatch.setattr(
        folder_migrations, "MIGRATIONS", {1: {"run.json": lambda old: old | {"kind": old["sort"]}}, 2: {"manifest.json": renamed}}
    )


FILE = {"path": "moon-000001.safetensors", "sha256": "ab" * 32, "epoch": 1, "step": 5, "final": False}


def old_run(folder: Path) -> RunFolder:
    place = folder / "moon"
    place.mkdir()
    (place / "run.json").write_text(json.dumps({"name": "moon", "sort": "grid", "created": 5.0}), encoding="utf-8")
    (place / "manifest.json").write_text(json.dumps({"weights": [FILE]}), encoding="utf-8")
    return RunFolder(place)


def test_a_new_run_carries_today_s_version_and_has_nothing_to_tell(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon")
    assert json.loads((folder.path / "run.json").read_text(encoding="utf-8"))["version"] == folder_migrations.VERSION
    assert folder.version_note() is None


def test_documents_of_an_older_run_are_read_in_today_s_form_and_left_as_they_are(tmp_path: Path, newer: None):
    run = old_run(tmp_path)
    assert run.info()["kind"] == "grid" and run.manifest()["files"] == [FILE]
    assert [found.id for found in list_runs(tmp_path)] == ["moon"] and run.summary()["files"] == 1
    note = run.version_note()
    assert note is not None and "older version" in note.text()
    assert "weights" in json.loads(run.manifest_file.read_text(encoding="utf-8"))


def test_a_run_of_a_newer_version_is_listed_and_says_so(tmp_path: Path):
    run = RunFolder.create(tmp_path, "moon")
    run.update_info(version=folder_migrations.VERSION + 1)
    note = run.version_note()
    assert [found.id for found in list_runs(tmp_path)] == ["moon"] and note is not None and "newer version" in note.text()


@pytest.mark.parametrize("number", [None, "2", True, -1, 1.5])
def test_a_damaged_number_counts_as_the_first_version(number: object):
    assert folder_migrations.version_of({"version": number}) == 1
