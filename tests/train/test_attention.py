"""Ways to calculate attention: all give what torch's own gives, and one that does not work here is found out before it is used."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import random_checkpoint
from lora_trainer import assets
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.step import attention

CPU = torch.device("cpu")


@pytest.fixture
def bundle():
    return load(FileSource(assets.toy_checkpoint()), CPU)


def answer(bundle) -> tuple[torch.Tensor, torch.Tensor]:
    """What the U-Net says, and the gradient that reaches the words."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randn(2, 77, bundle.text_encoder.config.hidden_size, generator=draw, requires_grad=True)
    noisy = torch.randn(2, 4, 8, 8, generator=draw)
    said = bundle.family.denoise(bundle, noisy, torch.tensor([3, 900]), Conditioning(words))
    said.square().sum().backward()
    return said.detach(), words.grad


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("name", ["sdpa", "sliced"])
def test_every_way_gives_the_same_answer_and_gradient(bundle, name, upcast, monkeypatch):
    said, gradient = answer(bundle)
    monkeypatch.setattr(attention, "MAX_SLICE", 77 * 10)  # many slices
    attention.set_processors(bundle.unet, name, upcast=upcast)
    other, other_gradient = answer(bundle)
    torch.testing.assert_close(other, said, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-4)


def test_torchs_own_way_is_what_a_bundle_has_from_the_beginning(bundle):
    said, gradient = answer(bundle)
    attention.set_processors(bundle.unet, "sdpa")
    again = answer(bundle)
    assert torch.equal(again[0], said) and torch.equal(again[1], gradient)


def test_slices_keep_no_table_of_weights(monkeypatch):
    monkeypatch.setattr(attention, "MAX_SLICE", 64 * 8)
    asked = torch.randn(1, 2, 64, 16, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
        attention.sliced(asked, asked, asked).sum()
    assert max(sizes) < 2 * 64 * 64


def test_what_works_here_is_found_by_trying_it_forward_and_backward(bundle):
    assert attention.why_not("sdpa", CPU, torch.float32, attention.head_widths(bundle.unet)) == ""
    assert attention.choose("auto", bundle) == ("sdpa", [])  # no xformers on a CPU
    name, told = attention.choose("xformers", bundle)
    assert name == "sdpa" and "xformers does not work here" in str(told[0].message) and told[0].path == "memory.attention"


def test_a_way_whose_backward_fails_is_not_taken(bundle, monkeypatch):
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, queries, keys, values):
            return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("No operator found for memory_efficient_attention_backward")

    monkeypatch.setitem(attention.ATTENTION, "sdpa", NoBackward.apply)
    assert "backward" in attention.why_not("sdpa", CPU, torch.float32, [8])
    assert attention.choose("auto", bundle)[0] == "sliced"


def test_attention_in_float32_where_a_family_overflows_half_precision(bundle):
    """SD 2's weights of 300 and more are too large for fp16: q times k is inf there."""
    assert not attention.wants_upcast(bundle)
    large = torch.full((1, 1, 4, 8), 300.0, dtype=torch.float16)

    class Layer:
        heads, rescale_output_factor = 1, 1.0
        to_q = to_k = staticmethod(lambda given: given)
        to_v = staticmethod(lambda given: torch.ones_like(given))
        to_out = (lambda found: found, lambda found: found)

    def plain(queries, keys, values):
        return (queries @ keys.transpose(-1, -2)).softmax(-1) @ values

    given = large[0]
    found = attention.AttentionProcessor(plain, upcast=True)(Layer(), given)
    assert found.dtype is torch.float16 and bool((found == 1).all())
    bundle.dtype, bundle.family.upcast_attention = torch.float16, True
    assert attention.wants_upcast(bundle)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")

    def made(family: str):
        path = folder / f"{family}.safetensors"
        return path if path.exists() else random_checkpoint.write(path, random_checkpoint.SHAPES[family][1], torch.float32)

    return made


def textbook(queries, keys, values):
    """softmax(q k / sqrt(d)) v, in one piece."""
    weights = torch.softmax(queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5, dim=-1)
    return weights @ values


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl"])
def test_for_every_family_each_way_gives_what_the_formula_gives_to_a_hundred_thousandth(random_file, family, monkeypatch):
    """In 64 bits: the random models' gradients are so badly conditioned that 32 bits differ by rounding alone."""
    bundle = load(FileSource(random_file(family), prediction="epsilon"), CPU)
    bundle.unet.double()
    draw = torch.Generator().manual_seed(1)
    drawn = partial(torch.randn, generator=draw, dtype=torch.float64)
    noisy = drawn(1, 4, 8, 8)
    words = drawn(1, 77, bundle.unet.config.cross_attention_dim, requires_grad=True)
    pooled = None if bundle.text_encoder_2 is None else drawn(1, bundle.text_encoder_2.config.projection_dim)

    def said():
        answer = bundle.family.denoise(bundle, noisy, torch.tensor([500]), Conditioning(words, pooled))
        return answer.detach(), torch.autograd.grad(answer.square().sum(), words)[0]

    monkeypatch.setitem(attention.ATTENTION, "textbook", textbook)
    attention.set_processors(bundle.unet, "textbook")
    expected = said()
    monkeypatch.setattr(attention, "MAX_SLICE", 77 * 30)
    for name, upcast in (("sdpa", False), ("sliced", False)):
        attention.set_processors(bundle.unet, name, upcast=upcast)
        for found, wanted in zip(said(), expected, strict=True):
            assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_automatic_begins_with_the_way_in_which_the_host_draws(bundle, monkeypatch):
    monkeypatch.setitem(attention.ATTENTION, "xformers", textbook)  # as if it worked here
    assert attention.choose("auto", bundle)[0] == "xformers"
    assert attention.choose("auto", bundle, "sdpa") == ("sdpa", [])
    assert attention.choose("auto", bundle, "some other way") == ("xformers", [])
    assert attention.choose("sliced", bundle, "sdpa") == ("sliced", [])
