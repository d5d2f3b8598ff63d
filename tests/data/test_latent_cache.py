"""Encoded pictures in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_trainer.config.build import build
from lora_trainer.control import Control
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.cache.latent_cache import LatentCache, load_pixels
from lora_trainer.data.pictures.images import load_bucket_image
from lora_trainer.errors import DatasetError

from .conftest import noise
from .scanning import scan


@pytest.fixture
def records(tmp_path):
    for number in range(4):
        noise((64, 96) if number % 2 else (80, 64), number).save(tmp_path / f"{number}.png")
    return assign_buckets(scan(tmp_path).records, build({"data": {"resolution": 64, "bucket_reso_steps": 8}}).data)


class Encoder:
    """Stands for a VAE: 4 channels at an eighth of the size; counts its calls."""

    def __init__(self):
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 4, 8, 8)
        self.calls = 0

    @torch.no_grad()
    def __call__(self, pixels):
        self.calls += 1
        assert pixels.dtype == torch.float32 and pixels.shape[:2] == (1, 3) and pixels.min() >= -1 and pixels.max() <= 1
        return self.layer(pixels)


def filled(cache, records, *, flip=False):
    return [event.done for event in cache.fill(records, flip=lambda record: flip, control=Control())]


def test_pixels_are_the_picture_from_minus_one_to_one(records):
    pixels = load_pixels(records[0], False)
    assert torch.equal(
        ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(load_bucket_image(records[0]).copy())
    )
    assert torch.equal(load_pixels(records[0], True), pixels.flip(-1)) and np.prod(pixels.shape[2:]) <= 64 * 64


def test_kept_latents_equal_those_that_are_read_anew_bit_for_bit(records):
    kept, anew = LatentCache(Encoder()), LatentCache(Encoder(), keep=False)
    assert filled(kept, records, flip=True) == [1, 2, 3, 4]
    filled(anew, records, flip=True)
    for record in records:
        for flipped in (False, True):
            assert torch.equal(kept.get(record, flipped), anew.get(record, flipped))
            assert kept.get(record, flipped).shape == (4, record.bucket[1] // 8, record.bucket[0] // 8)


def test_a_mirrored_picture_is_encoded_mirrored_and_its_latents_are_not_just_turned_round(records):
    encoder = Encoder()
    cache = LatentCache(encoder)
    filled(cache, records, flip=True)
    assert torch.equal(cache.get(records[0], True), encoder(load_pixels(records[0], False).flip(-1))[0])
    assert not torch.equal(cache.get(records[0], True), cache.get(records[0], False).flip(-1))


def test_what_is_kept_is_encoded_once_and_validation_pictures_never_mirrored(records):
    import attrs

    encoder = Encoder()
    cache = LatentCache(encoder)
    held = [attrs.evolve(records[0], validation=True), *records[1:]]
    filled(cache, held, flip=True)
    filled(cache, held, flip=True)
    for record in held:
        cache.get(record, False)
    assert encoder.calls == 1 + 2 * 3


def test_without_keeping_only_validation_pictures_stay(records):
    import attrs

    encoder = Encoder()
    cache = LatentCache(encoder, keep=False)
    filled(cache, [attrs.evolve(records[0], validation=True), *records[1:]])
    assert encoder.calls == 1 and cache.megabytes == pytest.approx(4 * records[0].bucket[0] * records[0].bucket[1] / 64 * 4 / 2**20)


def test_a_stop_ends_the_filling_between_two_pictures(records):
    control, cache, seen = Control(), LatentCache(Encoder()), []
    for event in cache.fill(records, flip=lambda record: False, control=control):
        seen.append(event.done)
        control.command("stop")
    assert seen == [1]


def test_kept_latents_hold_no_graph_and_no_foreign_memory(records):
    big = torch.zeros(1000, 4, 8, 8)
    cache = LatentCache(lambda pixels: big[:1].requires_grad_() * 1)
    filled(cache, records[:1])
    latent = cache.get(records[0], False)
    assert not latent.requires_grad and latent.untyped_storage().nbytes() == latent.numel() * latent.element_size()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vae_that_gives_no_numbers_is_told_with_the_pictures_name(records, bad):
    cache = LatentCache(lambda pixels: torch.full((1, 4, 8, 8), bad))
    with pytest.raises(DatasetError) as caught:
        filled(cache, records)
    assert "0.png" in caught.value.text() and "mixed_precision" in caught.value.text()
