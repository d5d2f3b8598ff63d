"""Hashes of checkpoints: calculated once, forgotten when the file changes, and what they tell of released models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import random_checkpoint
from lora_trainer import file_hashes as hashes
from lora_trainer.api.runs import plans, start_run
from lora_trainer.config.build import build
from lora_trainer.config.schema import ModelConfig
from lora_trainer.files import file_sha256
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models import load
from lora_trainer.models.detection import prediction_type
from tests.models.conftest import CPU


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hash_is_calculated_once_and_forgotten_when_the_file_changes(tmp_path, cache, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"weights")
    assert hashes.known_sha256(path, cache) == ""
    right = file_sha256(path)
    assert hashes.checkpoint_sha256(path, cache) == right
    monkeypatch.setattr(hashes, "file_sha256", lambda path: pytest.fail("it was read again"))
    assert (hashes.checkpoint_sha256(path, cache), hashes.known_sha256(path, cache)) == (right, right)
    monkeypatch.undo()
    path.write_bytes(b"others!")
    os.utime(path, ns=(1, 1))
    assert hashes.known_sha256(path, cache) == ""
    assert hashes.checkpoint_sha256(path, cache) == file_sha256(path) != right


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_broken_list_of_hashes_is_begun_anew(tmp_path, cache, content):
    cache.mkdir()
    (cache / hashes.CHECKPOINTS).write_text(content, encoding="utf-8")
    (tmp_path / "x").write_bytes(b"weights")
    assert hashes.checkpoint_sha256(tmp_path / "x", cache) == hashes.known_sha256(tmp_path / "x", cache) == file_sha256(tmp_path / "x")


@pytest.fixture
def unmarked(tmp_path) -> Path:
    """Stable Diffusion 2 without a mark of what it predicts."""
    return random_checkpoint.write(tmp_path / "models" / "x.safetensors", random_checkpoint.TINY_SD2)


@pytest.mark.parametrize(("kind", "size"), [("v", 768), ("epsilon", 512)])
def test_a_released_file_is_told_by_the_hash_that_an_earlier_run_calculated(tmp_path, cache, unmarked, monkeypatch, kind, size):
    monkeypatch.setattr(prediction_type, "HASHES", {file_sha256(unmarked): kind})
    monkeypatch.setattr(load, "probe_prediction", lambda bundle: pytest.fail("the model was asked"))
    host = StandaloneHost(tmp_path)
    assert host.known_sha256(unmarked) == ""
    with host.lease(ModelConfig()) as lease:
        assert lease.sha256 == file_sha256(unmarked)
    assert host.model_info()["prediction"] == kind
    config = build({})
    _, facts = start_run.model_facts(config, host)
    assert (facts.prediction, facts.sure, facts.native_size) == (kind, True, size)
    badge = plans.model_badge(config, host, facts)
    assert badge is not None
    assert str(badge["because"]) == "its hash: a released file"
    with host.lease(ModelConfig()) as lease:
        assert load.load(lease.source, CPU).prediction == kind


def test_a_webuis_own_hash_is_asked_for(tmp_path, unmarked, monkeypatch):
    class WebUI(StandaloneHost):
        def known_sha256(self, path: Path) -> str:
            return "of its own list" if path == unmarked else ""

    monkeypatch.setattr(prediction_type, "HASHES", {"of its own list": "epsilon"})
    _, facts = start_run.model_facts(build({"model": {"pretrained_model_name_or_path": str(unmarked)}}), WebUI(tmp_path))
    assert (facts.prediction, facts.sure) == ("epsilon", True)
