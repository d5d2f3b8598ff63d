import os
import shutil
from pathlib import Path

import pytest

from lora_trainer.config.schema import ModelConfig
from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.files import file_sha256
from lora_trainer.host.detect import detect
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.source import FileSource


@pytest.fixture
def place(tmp_path, monkeypatch, toy_checkpoint):
    """Puts a copy of the small model under a name in ./models."""
    monkeypatch.delenv("LORA_TRAINER_MODELS", raising=False)

    def put(name):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy_checkpoint, path)
        return path

    return put


def test_small_model_serves_where_there_is_no_other(tmp_path, place, toy_checkpoint):
    host = StandaloneHost(tmp_path)
    with host.lease(ModelConfig()) as lease:
        assert lease.source == FileSource(toy_checkpoint)
        assert lease.source is lease.resume()
        assert lease.sha256 == file_sha256(toy_checkpoint)
        assert not lease.own_previews and not lease.let_one_through()
        with pytest.raises(TrainerError):
            lease.preview(None, None, 1.0, None)
    assert host.model_info()["trainable"] and host.model_info()["family"] == "sd1"


def test_single_model_of_ones_own_is_what_empty_means(tmp_path, place):
    mine = place("mine.safetensors")
    host = StandaloneHost(tmp_path)
    with host.lease(ModelConfig()) as lease:
        assert lease.checkpoint == mine
    assert host.model_info()["title"] == "mine"


def test_among_several_one_must_choose(tmp_path, place):
    place("one.safetensors")
    two = place("sub/two.safetensors")
    host = StandaloneHost(tmp_path)
    with pytest.raises(ModelError, match="Choose a checkpoint"), host.lease(ModelConfig()):
        pass
    assert not host.model_info()["trainable"]
    for name in ("two", "two.safetensors", str(two)):
        with host.lease(ModelConfig(pretrained_model_name_or_path=name)) as lease:
            assert lease.checkpoint == two
    with pytest.raises(ModelError, match="Did you mean"), host.lease(ModelConfig(pretrained_model_name_or_path="tow")):
        pass


def test_folders_of_the_environment_are_searched_too(tmp_path, place, monkeypatch):
    there = place("there.safetensors")
    monkeypatch.setenv("LORA_TRAINER_MODELS", os.pathsep.join([str(tmp_path / "absent"), str(there.parent)]))
    assert "there" in [checkpoint.title for checkpoint in StandaloneHost(tmp_path / "elsewhere").checkpoints()]


def test_vae_is_found_by_name_and_not_taken_for_a_checkpoint(tmp_path, place):
    mine, vae = place("mine.safetensors"), place("VAE/soft.safetensors")
    place("sharp.vae.safetensors")
    host = StandaloneHost(tmp_path)
    assert [path.name for path in host.vaes()] == ["soft.safetensors", "sharp.vae.safetensors"]
    assert [checkpoint.path for checkpoint in host.checkpoints() if checkpoint.loaded] == [mine]
    with host.lease(ModelConfig(vae="soft")) as lease:
        assert lease.source == FileSource(mine, vae)
        assert lease.vae_title == "soft.safetensors"
    with pytest.raises(ModelError, match="no VAE hard"), host.lease(ModelConfig(vae="hard")):
        pass


def test_what_is_no_checkpoint_is_refused_before_the_loan(tmp_path, place):
    text = tmp_path / "notes.safetensors"
    text.write_text("no tensors", encoding="utf-8")
    with (
        pytest.raises(ModelError, match="not a safetensors file"),
        StandaloneHost(tmp_path).lease(ModelConfig(pretrained_model_name_or_path=str(text))),
    ):
        pass


def test_folders_are_bounded_only_when_opened_to_the_network(tmp_path):
    assert StandaloneHost(tmp_path).paths().allows(Path("/etc"))
    paths = StandaloneHost(tmp_path, listen=True, allow=[tmp_path.parent / "photos"]).paths()
    assert paths.allows(tmp_path / "runs") and paths.allows(tmp_path.parent / "photos" / "a.png")
    assert not paths.allows(Path("/etc"))


def test_memory_is_that_of_this_computer(tmp_path):
    memory = StandaloneHost(tmp_path).memory()
    assert memory["total_mb"] > memory["free_mb"] > 0
    assert memory["host_mb"] > 0


def test_without_a_webui_nobody_is_the_host():
    assert detect().name == "standalone"


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    with StandaloneHost(tmp_path, device="cpu").lease(ModelConfig()) as lease:
        assert lease.device.type == "cpu"
    for name in ("cuda:77", "the second one", "meta"):
        with pytest.raises(TrainerError, match="there is no device") as refused, StandaloneHost(tmp_path, device=name).lease(ModelConfig()):
            raise AssertionError("it was lent")
        assert refused.value.problems[0].path == "memory.device"
        assert "cpu" in refused.value.problems[0].fix.text()
