"""The VAE's number format: as it is held, float32 for a picture that has no finite numbers so, named where that fails too."""

from __future__ import annotations

import pytest
import torch

from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.cache.latent_cache import LatentCache
from lora_trainer.errors import DatasetError
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.inputs import vae
from tests.data.scanning import scan

CPU = torch.device("cpu")


@pytest.fixture
def bundle():
    return load(FileSource(assets.toy_checkpoint()), CPU)


def overflowing(bundle):
    """As SDXL's VAE in fp16: activations grow beyond what half precision holds, for bright pictures only."""
    bundle.vae.to(torch.float16)
    own = bundle.vae.encode

    def encode(pixels):
        with vae.in_float32(bundle.vae):  # torch 2.1 has no half precision on the CPU
            found = own(pixels.float())
        if pixels.dtype is torch.float16 and float(pixels.max()) > 0.9:
            found.latent_dist.mean.fill_(float("inf"))
        return found

    bundle.vae.encode = encode
    return bundle


def test_a_picture_that_overflows_is_encoded_in_float32_and_others_are_not_changed_by_it(bundle):
    bright, dark = torch.ones(1, 3, 64, 64), torch.full((1, 3, 64, 64), -0.5)
    exact = vae.encode(bundle, bright)
    half = overflowing(bundle)
    before = {name: tensor.clone() for name, tensor in half.vae.state_dict().items()}
    alone = vae.encode(half, dark)
    found = vae.encode(half, bright)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    assert torch.equal(vae.encode(half, dark), alone)
    after = half.vae.state_dict()
    assert all(torch.equal(after[name], tensor) and after[name].dtype is tensor.dtype for name, tensor in before.items())


@pytest.mark.parametrize(("asked", "held"), [("auto", torch.float16), ("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_format_that_was_asked_for_is_a_copy_and_the_hosts_numbers_stay(bundle, asked, held):
    bundle.vae.to(torch.float16)
    lent = next(bundle.vae.parameters()).data
    before = lent.clone()
    vae.set_precision(bundle, asked)
    assert next(bundle.vae.parameters()).dtype is held
    assert lent.dtype is torch.float16 and torch.equal(lent, before)


def test_drawing_falls_back_to_float32_too(bundle):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = vae.decode(bundle, latents)
    bundle.vae.to(torch.float16)
    own, formats = bundle.vae.decode, []

    def decode(scaled):
        formats.append(scaled.dtype)
        with vae.in_float32(bundle.vae):
            found = own(scaled.float())
        if scaled.dtype is torch.float16:
            found.sample.fill_(float("nan"))
        return found

    bundle.vae.decode = decode
    torch.testing.assert_close(vae.decode(bundle, latents), exact, rtol=0.05, atol=0.05)
    assert formats == [torch.float16, torch.float32]


def test_a_picture_without_finite_numbers_even_then_is_named(bundle, toy_pictures):
    data = build({"data": {"resolution": 64, "bucket_reso_steps": 8}}).data
    record = next(record for record in assign_buckets(scan(toy_pictures / "crescent" / "val").records, data) if record.usable)
    own = bundle.vae.encode

    def encode(pixels):
        found = own(pixels)
        found.latent_dist.mean.fill_(float("nan"))
        return found

    bundle.vae.encode = encode
    with pytest.raises(DatasetError, match=record.path.name):
        LatentCache(lambda pixels: vae.encode(bundle, pixels)).get(record, False)
