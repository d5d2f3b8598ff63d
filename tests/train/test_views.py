"""Kept on disk, varied or masked: what a run learns from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer import assets
from lora_trainer.config.schema import LossConfig
from lora_trainer.control import Control
from lora_trainer.data.cache import array_store
from lora_trainer.events import Progress, Stepped, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.identity import vae_encoder_id
from lora_trainer.models.load import load
from lora_trainer.train import setup
from lora_trainer.train.distributed import SingleProcess
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.step.objective import Batch, per_image_losses

from .runs import events_of, small_config, tensors_of

STEPS = {"steps__max_train_steps": 4}


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """A cache folder that no earlier test has filled; what ships is taken from the usual one."""
    monkeypatch.setattr(StandaloneHost, "paths", _with_cache(StandaloneHost.paths, tmp_path / "cache"))
    return tmp_path / "cache"


def _with_cache(paths, folder):
    import attrs

    return lambda host: attrs.evolve(paths(host), cache_dir=folder)


def weights_of(tmp_path: Path, name: str, **changes):
    config = small_config(tmp_path / name, **STEPS, **changes)
    events = events_of(config, tmp_path / name)
    return tensors_of(tmp_path / name / "loras" / "small.safetensors"), events


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_learns_the_same_bits_with_and_without_latents_on_disk(tmp_path, cache_dir):
    plain, _ = weights_of(tmp_path, "memory", data__cache_latents_to_disk=False, data__flip_aug=True)
    assert not cache_dir.exists()
    cold, _ = weights_of(tmp_path, "cold", data__flip_aug=True)
    assert array_store.store_size(cache_dir / "latents") > 24 * 4 * 8 * 8 * 4
    size = array_store.store_size(cache_dir / "latents")
    warm, events = weights_of(tmp_path, "warm", data__flip_aug=True)
    assert array_store.store_size(cache_dir / "latents") == size
    uncached, _ = weights_of(tmp_path, "uncached", data__flip_aug=True, data__cache_latents=False)
    assert equal(plain, cold) and equal(plain, warm) and equal(plain, uncached)
    assert any(isinstance(event, Progress) for event in events)


def bundle_of(vae_change: float = 0.0):
    config = small_config(Path("unused"))
    with StandaloneHost().lease(config.model) as lease:
        bundle = load(lease.source, lease.device, torch.float32)
    if vae_change:
        with torch.no_grad():
            weight = bundle.vae.encoder.conv_in.weight
            weight[0, 0, 0, 0] += vae_change
    return bundle


def test_a_vae_is_known_by_every_bit_that_reads_pictures():
    same, other = bundle_of(), bundle_of(1e-3)
    assert vae_encoder_id(bundle_of()) == vae_encoder_id(same) != vae_encoder_id(other)
    with torch.no_grad():
        same.vae.decoder.conv_out.bias += 1.0  # only draws
    assert vae_encoder_id(same) == vae_encoder_id(bundle_of())
    same.vae.to(torch.bfloat16)
    assert vae_encoder_id(same) != vae_encoder_id(bundle_of())
    assert vae_encoder_id(bundle_of(), batch_size=4) != vae_encoder_id(bundle_of())


# --- varied pictures ------------------------------------------------------------------------------------------------------------------


def test_varied_pictures_train_the_same_each_time_and_other_than_plain_ones(tmp_path, cache_dir):
    vary = {"data__cache_latents": False, "data__color_aug": True, "data__random_crop": True, "data__resolution": [128, 64]}
    one, _ = weights_of(tmp_path, "one", **vary)
    again, _ = weights_of(tmp_path, "again", **vary)
    plain, _ = weights_of(tmp_path, "plain", data__cache_latents=False, data__resolution=[128, 64])
    assert equal(one, again) and not equal(one, plain)


# --- masks ----------------------------------------------------------------------------------------------------------------------------


def halves(tmp_path: Path) -> Path:
    """The crescents, each with a mask over its left half."""
    folder = tmp_path / "masked" / "1_sks"
    shutil.copytree(next((assets.toy_pictures() / "crescent" / "train").iterdir()), folder)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    for path in list(folder.glob("*.png")):
        Image.fromarray(mask).save(path.with_name(f"{path.stem}-masklabel.png"))
    return folder.parent


class Echo:
    """A family whose answer is a leaf of its own, so that the gradient of the loss shows where it is learned."""

    def __init__(self, answer):
        self.answer = answer

    def denoise(self, bundle, noisy, timesteps, conditioning):
        return self.answer


def gradient(masks, **rules):
    class Bundle:
        alphas_cumprod = torch.linspace(0.999, 0.01, 1000)
        prediction = "epsilon"
        dtype = torch.float32

    torch.manual_seed(0)
    answer = torch.randn(2, 4, 8, 8, requires_grad=True)
    bundle = Bundle()
    bundle.family = Echo(answer)
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    batch = Batch(latents, noise, torch.tensor([10, 900]), torch.zeros(2, 77, 8), masks)
    losses = per_image_losses(bundle, batch, LossConfig(**rules))
    losses.sum().backward()
    return losses.detach(), answer.grad


@pytest.mark.parametrize("rules", [{}, {"min_snr_gamma": 5.0}])
def test_the_gradient_is_zero_outside_a_mask_and_the_same_inside(rules):
    mask = torch.ones(2, 1, 8, 8)
    mask[0, :, :, 4:] = 0
    mask[1, :, 2:3] = 0.5
    _, whole = gradient(None, **rules)
    losses, masked = gradient(mask, **rules)
    assert torch.equal(masked[0, :, :, 4:], torch.zeros(4, 8, 4)) and torch.equal(masked[0, :, :, :4], whole[0, :, :, :4])
    assert whole[0, :, :, 4:].abs().min() > 0
    assert torch.allclose(masked[1, :, 2:3], whole[1, :, 2:3] / 2) and torch.equal(masked[1, :, 3:], whole[1, :, 3:])
    assert (losses <= gradient(None, **rules)[0]).all()


def test_masks_reach_the_run_and_are_told_of(tmp_path, cache_dir):
    plain, _ = weights_of(tmp_path, "plain", data__train_data_dir=str(halves(tmp_path)))
    masked, events = weights_of(tmp_path, "masked-run", data__train_data_dir=str(tmp_path / "masked"), data__masks_beside=True)
    told = " ".join(event.message.text() for event in events if isinstance(event, Warned))
    assert "12 of 12 pictures have masks" in told and "50.0 %" in told
    assert not equal(plain, masked)


def test_masks_that_let_everything_through_change_no_bit(tmp_path, cache_dir):
    folder = halves(tmp_path)
    for path in folder.rglob("*-masklabel.png"):
        Image.new("L", (64, 64), 255).save(path)
    plain, _ = weights_of(tmp_path, "plain", data__train_data_dir=str(folder))
    masked, _ = weights_of(tmp_path, "masked-run", data__train_data_dir=str(folder), data__masks_beside=True)
    assert equal(plain, masked)


def test_a_black_mask_learns_nothing(tmp_path, cache_dir):
    folder = halves(tmp_path)
    for path in folder.rglob("*-masklabel.png"):
        Image.new("L", (64, 64), 0).save(path)
    _, events = weights_of(tmp_path, "black", data__train_data_dir=str(folder), data__masks_beside=True, optimizer__args="weight_decay=0")
    steps = [event for event in events if isinstance(event, Stepped)]
    assert steps and all(event.loss == 0 and event.grad_norm == 0 for event in steps)


def test_a_mask_is_mirrored_with_its_picture(tmp_path, cache_dir):
    config = small_config(tmp_path, data__train_data_dir=str(halves(tmp_path)), data__masks_beside=True)
    pictures = load_dataset(config)
    with StandaloneHost(tmp_path).lease(config.model) as lease:
        trainer = setup.prepare(config, pictures, lease)
    list(setup.cache_latents(trainer, Control(), SingleProcess()))
    record = pictures.train_records[0]
    straight, turned = (trainer.views.latents(record, flipped, epoch=1, repeat=0)[1] for flipped in (False, True))
    assert straight[0].tolist() == [1] * 4 + [0] * 4 and turned[0].tolist() == [0] * 4 + [1] * 4


@pytest.mark.slow
def test_of_two_concepts_in_a_picture_only_the_one_inside_the_mask_is_learned(tmp_path, cache_dir):
    folder = tmp_path / "both" / "1_sks"
    folder.mkdir(parents=True)
    sources = [sorted(next((assets.toy_pictures() / name / "train").iterdir()).glob("*.png")) for name in ("crescent", "star")]
    for number, (crescent, star) in enumerate(zip(*sources, strict=True)):
        both = Image.new("RGB", (128, 64))
        both.paste(Image.open(crescent), (0, 0))
        both.paste(Image.open(star), (64, 0))
        both.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("sks", encoding="utf-8")
        mask = Image.new("L", (128, 64), 0)
        mask.paste(255, (0, 0, 64, 64))
        mask.save(folder / f"{number}-masklabel.png")
    config = small_config(
        tmp_path,
        data__train_data_dir=str(folder.parent),
        data__resolution=[128, 64],
        data__enable_bucket=False,
        data__masks_beside=True,
        data__batch_size=4,
        steps__max_train_steps=40,
    )
    before = side_losses(config, tmp_path)
    events_of(config, tmp_path)
    after = side_losses(config, tmp_path, tmp_path / "loras" / "small.safetensors")
    left, right = (1 - after[side] / before[side] for side in (0, 1))
    assert left > 0.15 and right < left / 2, (left, right)


def side_losses(config, folder: Path, lora: Path | None = None) -> tuple[float, float]:
    """Error in the left and in the right half of the pictures, over fixed timesteps and noise."""
    pictures = load_dataset(config)
    sides = [0.0, 0.0]
    with StandaloneHost(folder).lease(config.model) as lease:
        trainer = setup.prepare(config, pictures, lease)
        trainer.attach()
        if lora is not None:
            trainer.adapter.load_state_dict(tensors_of(lora))
        for number, record in enumerate(pictures.train_records[:6]):
            steps = torch.tensor([100, 300, 500, 700, 900])
            latents = trainer.latent(record, False).expand(5, 4, 8, 16)
            noise = torch.randn(5, 4, 8, 16, generator=torch.Generator().manual_seed(number))
            with torch.no_grad():
                words = trainer.caption_encoder.encode(trainer.bundle, ["sks"]).expand(5).states
                for side in (0, 1):
                    mask = torch.zeros(5, 1, 8, 16)
                    mask[..., 8 * side : 8 * side + 8] = 1
                    sides[side] += float(per_image_losses(trainer.bundle, Batch(latents, noise, steps, words, mask), LossConfig()).mean())
        trainer.detach()
    return sides[0], sides[1]
