"""The same model from a file and from a folder in diffusers' layout; VAEs of their own; and a model asked what it predicts."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch

from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.detection.probe import correlation, probe_prediction
from lora_trainer.models.files import save, tensor_file
from lora_trainer.models.files.diffusers_folder import main_weight_file
from lora_trainer.models.files.vae_file import check_vae
from lora_trainer.models.load import load, read_vae
from lora_trainer.models.noise_schedule import SCALED_LINEAR
from lora_trainer.models.source import FileSource
from tests.models.conftest import CPU, FAMILIES


def write_folder(folder: Path, bundle, **scheduler: object) -> Path:
    """A bundle as diffusers' own pipelines save it."""
    bundle.unet.save_pretrained(folder / "unet")
    bundle.vae.save_pretrained(folder / "vae")
    for number, text in enumerate(bundle.text_encoders):
        whole = {name: tensor.contiguous() for name, tensor in text.state_dict().items()}  # ours is a turned view
        place = folder / ("text_encoder" if not number else "text_encoder_2")
        text.save_pretrained(place, safe_serialization=True, state_dict=whole)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, bundle_of, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp(request.param), bundle_of(request.param), prediction_type="epsilon"), request.param


def same(ours, theirs) -> bool:
    pairs = zip(ours.modules(), theirs.modules(), strict=True)
    states = [(dict(own.named_parameters()), dict(other.named_parameters())) for own, other in pairs]
    return all(set(own) == set(other) and all(torch.equal(own[name], other[name]) for name in own) for own, other in states)


def test_a_folder_holds_the_same_model_as_the_file(folder, bundle_of, checkpoint):
    path, family = folder
    assert same(load(FileSource(path), CPU), bundle_of(family))
    facts, of_file = inspect(path), inspect(checkpoint(family))
    assert facts.family == family
    known = ("model_channels", "context_width", "text_layers", "unet_parameters", "text_parameters", "vae_parameters")
    assert [getattr(facts, name) for name in known] == [getattr(of_file, name) for name in known]
    assert (facts.prediction, facts.sure) == ("epsilon", True)


def test_heads_of_a_folder_are_those_of_its_configs(folder, bundle_of):
    path, family = folder
    ours, theirs = load(FileSource(path), CPU), bundle_of(family)
    noisy, words = torch.ones(1, 4, 8, 8), theirs.family.encode_text(theirs, torch.full((1, 77), 49407), 1)
    with torch.no_grad():
        own = ours.family.denoise(ours, noisy, torch.tensor([500]), words)
        assert torch.allclose(own, theirs.family.denoise(theirs, noisy, torch.tensor([500]), words), atol=1e-5)


def test_the_weights_by_which_a_model_is_known_are_its_unets(folder):
    path, _ = folder
    assert main_weight_file(path) == path / "unet" / "diffusion_pytorch_model.safetensors"
    assert main_weight_file(main_weight_file(path)) == main_weight_file(path)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"prediction_type": "v_prediction"}, ("v", False)),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, ("v", True)),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, ("epsilon", False)),
        ({}, ("epsilon", False)),
    ],
)
def test_what_a_folder_predicts_stands_in_its_scheduler(tmp_path, bundle_of, scheduler, expected):
    facts = inspect(write_folder(tmp_path / "model", bundle_of("sd2"), **scheduler))
    assert (facts.prediction, facts.zero_terminal_snr) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: (path / "unet" / "config.json").unlink(), "no model in diffusers' layout"),
        (lambda path: (path / "vae" / "config.json").unlink(), "lacks vae"),
        (lambda path: (path / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "holds no weights"),
        (lambda path: (path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8"), "a Flux model"),
        (lambda path: (path / "model_index.json").write_text("{", encoding="utf-8"), "cannot be read"),
        (
            lambda path: (path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}', encoding="utf-8"),
            "a model that predicts sample",
        ),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused_by_what_is_wrong(tmp_path, bundle_of, change, words):
    path = write_folder(tmp_path / "model", bundle_of("sd1"))
    change(path)
    with pytest.raises(ModelError, match=words):
        inspect(path)


def test_a_model_in_pieces_and_in_torchs_own_files_is_read(tmp_path, bundle_of):
    path = write_folder(tmp_path / "model", bundle_of("sd1"))
    whole = path / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(whole)
    names, half = sorted(tensors), len(tensors) // 2
    parts = (names[:half], names[half:])
    pieces = {f"diffusion_pytorch_model-0000{number}-of-00002.safetensors": held for number, held in enumerate(parts, start=1)}
    for file, held in pieces.items():
        save_file({name: tensors[name] for name in held}, path / "unet" / file)
    index = {"weight_map": {name: file for file, held in pieces.items() for name in held}}
    (path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    whole.unlink()
    text = path / "text_encoder" / "model.safetensors"
    torch.save(load_file(text), path / "text_encoder" / "pytorch_model.bin")
    text.unlink()
    assert same(load(FileSource(path), CPU), bundle_of("sd1"))


def vae_of(bundle) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in bundle.vae.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_another_vae_is_taken_from_a_file_of_any_layout_or_a_folder(tmp_path, checkpoint, bundle_of, family):
    from safetensors.torch import save_file

    wanted = vae_of(bundle_of(family))
    ldm = save.host_names("vae", wanted)
    old = {f".attentions.0.{new}.": f".attentions.0.{name}." for name, new in layout.OLD_VAE_ATTENTION.items()}
    before = {next((key.replace(new, name) for new, name in old.items() if new in key), key): tensor for key, tensor in wanted.items()}
    assert set(before) != set(wanted)
    save_file(ldm, tmp_path / "a.vae.safetensors")
    save_file({layout.VAE + name: tensor for name, tensor in ldm.items()}, tmp_path / "b.safetensors")
    save_file(wanted, tmp_path / "c.safetensors")
    for name in ("folder", "whole/vae"):
        (tmp_path / name).mkdir(parents=True)
        save_file(before, tmp_path / name / "diffusion_pytorch_model.safetensors")
    torch.save({"state_dict": {**ldm, "loss.logvar": torch.ones(1)}}, tmp_path / "d.vae.pt")
    for name in ("a.vae.safetensors", "b.safetensors", "c.safetensors", "folder", "whole", "d.vae.pt"):
        state = read_vae(tmp_path / name)
        assert set(state) == set(wanted)
        assert all(torch.equal(state[key].reshape(wanted[key].shape), wanted[key]) for key in wanted), name
    made, other = load(FileSource(checkpoint(family), tmp_path / "d.vae.pt"), CPU), bundle_of(family)
    assert all(torch.equal(value, wanted[key]) for key, value in made.vae.named_parameters())
    assert all(torch.equal(own, same) for own, same in zip(made.unet.parameters(), other.unet.parameters(), strict=True))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.ones(1)}, "not a VAE"),
        ({"decoder.conv_in.weight": torch.ones(4, 16, 3, 3)}, "a VAE of 16 channels"),
        ({"decoder.layers.0.weight": torch.ones(4, 4, 3, 3)}, "a small stand-in"),
        ({"encoder.conv_in.weight": torch.ones(4, 3, 3, 3), "encoder.down.0.block.0.conv1.weight": torch.ones(1)}, "not a VAE"),
    ],
)
def test_what_is_no_vae_of_these_families_is_refused_by_what_it_is(tmp_path, tensors, words):
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "x.safetensors")
    for look in (check_vae, read_vae):
        with pytest.raises(ModelError, match=words):
            look(tmp_path / "x.safetensors")


def test_a_whole_checkpoint_holds_a_vae(toy_checkpoint: Path):
    assert "encoder.conv_in.weight" in read_vae(toy_checkpoint)


class _AsV(torch.nn.Module):
    """The answer of a model that predicts the noise, put as v: sqrt(a) e - sqrt(1 - a) x for the picture that it means."""

    def __init__(self, unet: torch.nn.Module, alphas: torch.Tensor) -> None:
        super().__init__()
        self.unet, self.alphas = unet, alphas

    def forward(self, noisy, timesteps, **told):
        kept = self.alphas[timesteps].view(-1, 1, 1, 1)
        noise = self.unet(noisy, timesteps, **told)[0]
        picture = ((noisy - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-3, 3)
        return (kept.sqrt() * noise - (1 - kept).sqrt() * picture,)


def test_a_trained_model_says_itself_what_it_predicts(toy_checkpoint: Path):
    bundle = load(FileSource(toy_checkpoint), CPU)
    assert probe_prediction(bundle) == "epsilon"
    assert correlation(bundle) > 0.9
    as_v = attrs.evolve(bundle, unet=_AsV(bundle.unet, SCALED_LINEAR.alphas_cumprod()))
    assert probe_prediction(as_v) == "v"
    assert abs(correlation(as_v)) < 0.3


def test_a_model_without_a_mark_is_asked_when_it_is_loaded_and_the_user_is_believed(tmp_path, toy_checkpoint: Path):
    path = tmp_path / "toy-v-pred.safetensors"  # only its name says so, and it is wrong
    path.write_bytes(toy_checkpoint.read_bytes())
    assert (inspect(path).prediction, inspect(path).sure) == ("v", False)
    assert load(FileSource(path), CPU).prediction == "epsilon"
    assert load(FileSource(path, prediction="v"), CPU).prediction == "v"


def test_zero_terminal_snr_is_loaded_as_it_is_marked(tmp_path, checkpoint):
    from safetensors.torch import save_file

    tensors = tensor_file.tensors(checkpoint("sd1"))
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "x.safetensors")
    made = load(FileSource(tmp_path / "x.safetensors"), CPU)
    assert (made.prediction, made.zero_terminal_snr) == ("v", True)
    assert made.alphas_cumprod[-1] == 0
