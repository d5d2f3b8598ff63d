"""Which models the headless host offers, and what it lends of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lora_trainer.config.schema import ModelConfig
from lora_trainer.errors import ModelError
from lora_trainer.files import file_sha256
from lora_trainer.host.base import find_checkpoint
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.files import tensor_file
from lora_trainer.models.files.hub import NotDownloaded
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource


@pytest.fixture(scope="module")
def folder_model(tmp_path_factory, toy_checkpoint: Path) -> Path:
    """The small model as a folder in diffusers' layout."""
    folder, bundle = tmp_path_factory.mktemp("diffusers"), load(FileSource(toy_checkpoint), torch.device("cpu"))
    for name, module in (("unet", bundle.unet), ("vae", bundle.vae), ("text_encoder", bundle.text_encoder)):
        module.save_pretrained(folder / name, safe_serialization=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    return folder


@pytest.fixture
def models(tmp_path: Path, folder_model: Path, toy_checkpoint: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(folder_model, folder / "a folder")
    torch.save({"state_dict": tensor_file.tensors(toy_checkpoint)}, folder / "old.ckpt")
    shutil.copy(toy_checkpoint, folder / "new.safetensors")
    shutil.copy(folder_model / "vae" / "diffusion_pytorch_model.safetensors", folder / "other.vae.safetensors")
    return folder


def test_files_of_both_kinds_and_whole_folders_are_offered_once(models: Path):
    offered = {known.path for known in StandaloneHost(models.parent).checkpoints()}
    assert {path.name for path in offered if models in path.parents} == {"a folder", "old.ckpt", "new.safetensors"}


@pytest.mark.parametrize("name", ["a folder", "old", "new.safetensors"])
def test_each_of_them_is_lent_as_the_same_model(models: Path, toy_checkpoint: Path, name: str):
    device = torch.device("cpu")
    expected = load(FileSource(toy_checkpoint), device)
    with StandaloneHost(models.parent).lease(ModelConfig(pretrained_model_name_or_path=name)) as lease:
        made = load(lease.source, device)
        weights_of = lease.checkpoint / "unet" / "diffusion_pytorch_model.safetensors" if name == "a folder" else lease.checkpoint
        assert lease.sha256 == file_sha256(weights_of)
    for own, other in zip(made.modules(), expected.modules(), strict=True):
        others = dict(other.named_parameters())
        assert all(torch.equal(value, others[key]) for key, value in own.named_parameters())


def test_a_vae_may_be_a_folder(models: Path):
    model = ModelConfig(pretrained_model_name_or_path="new", vae=str(models / "a folder" / "vae"))
    with StandaloneHost(models.parent).lease(model) as lease:
        assert isinstance(lease.source, FileSource)
        assert lease.source.vae == models / "a folder" / "vae"
        load(lease.source, torch.device("cpu"))


def test_flags_reach_the_model_where_its_file_says_nothing(models: Path):
    model = ModelConfig(pretrained_model_name_or_path="new", v_parameterization=True, zero_terminal_snr=True)
    with StandaloneHost(models.parent).lease(model) as lease:
        made = load(lease.source, torch.device("cpu"))
    assert (made.prediction, made.zero_terminal_snr) == ("v", True)
    assert made.alphas_cumprod[-1] == 0


def test_a_flag_against_the_file_is_refused_before_anything_is_lent(models: Path):
    with (
        pytest.raises(ModelError, match="v2 is set"),
        StandaloneHost(models.parent).lease(ModelConfig(pretrained_model_name_or_path="new", v2=True)),
    ):
        pass


def test_a_hubs_model_that_is_not_here_is_told_apart_from_a_name_that_is_wrong(models: Path, monkeypatch):
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(models.parent / "cache"))
    known = StandaloneHost(models.parent).checkpoints()
    with pytest.raises(NotDownloaded, match="someone/some-model"):
        find_checkpoint("someone/some-model", known)
    with pytest.raises(ModelError, match="no checkpoint nev") as caught:
        find_checkpoint("nev", known)
    assert "new" in str(caught.value)
    assert not isinstance(caught.value, NotDownloaded)
