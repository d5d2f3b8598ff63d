"""LoRA: names, arithmetic, on and off, files."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import torch

from lora_trainer.adapters.lora_file import LoraAdapter, read_lora, verify_written, with_loras, write_lora
from lora_trainer.adapters.targets import targets
from lora_trainer.errors import ModelError, TrainerError, TrainingError
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.models.tokenize import tokenize

CPU = torch.device("cpu")
UNET_NAME = re.compile(
    r"lora_unet_(down_blocks_[0-2]_attentions_[01]|mid_block_attentions_0|up_blocks_[1-3]_attentions_[0-2])_"
    r"(proj_in|proj_out|transformer_blocks_0_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)))"
)
TEXT_NAME = re.compile(r"lora_te_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")


@pytest.fixture(scope="module")
def bundle(toy_checkpoint: Path):
    return load(FileSource(toy_checkpoint), CPU)


@pytest.fixture
def adapter(bundle):
    made = LoraAdapter(bundle, rank=4, alpha=2.0, parts=("unet", "text_encoder"), seed=1)
    yield made
    made.detach()


def answer(bundle) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        words = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, ["a red circle", ""]), 1)
        return bundle.family.denoise(bundle, noisy, torch.tensor([10, 900]), words)


def stir(adapter: LoraAdapter) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensors in adapter.parameters().values():
            for tensor in tensors:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)


def test_the_network_stands_on_192_layers_of_the_unet_and_6_per_text_layer(bundle):
    unet, text = dict(targets(bundle, "unet")), dict(targets(bundle, "text_encoder"))
    assert (len(unet), len(text)) == (192, 24)
    assert all(UNET_NAME.fullmatch(name) for name in unet)
    assert all(TEXT_NAME.fullmatch(name) for name in text)


def test_a_fresh_network_changes_nothing(bundle, adapter):
    before = answer(bundle)
    adapter.attach(bundle)
    assert torch.equal(answer(bundle), before)


def test_taking_the_network_off_gives_the_base_back_bit_for_bit(bundle, adapter):
    before, weights = answer(bundle), {name: value.clone() for name, value in bundle.unet.named_parameters()}
    stir(adapter)
    adapter.attach(bundle)
    assert not torch.equal(answer(bundle), before)
    adapter.detach()
    assert torch.equal(answer(bundle), before)
    assert all(torch.equal(value, weights[name]) for name, value in bundle.unet.named_parameters())


def test_the_effect_is_that_of_weights_merged_by_alpha_over_rank(bundle, adapter, toy_checkpoint: Path):
    stir(adapter)
    adapter.attach(bundle)
    trained = answer(bundle)
    adapter.detach()
    merged = load(FileSource(toy_checkpoint), CPU)
    with torch.no_grad():
        for part in ("unet", "text_encoder"):
            for name, module in targets(merged, part):
                down, up = adapter.layers[part][name].parameters.values()
                delta = up.flatten(1) @ down.flatten(1) * (2.0 / 4)
                module.weight += delta.reshape(module.weight.shape)
    assert torch.allclose(trained, answer(merged), atol=2e-5)


def test_the_same_seed_starts_a_layer_the_same_whatever_else_is_trained(bundle):
    alone = LoraAdapter(bundle, rank=4, alpha=4, parts=("text_encoder",), seed=7)
    both = LoraAdapter(bundle, rank=4, alpha=4, parts=("unet", "text_encoder"), seed=7)
    other = LoraAdapter(bundle, rank=4, alpha=4, parts=("text_encoder",), seed=8)
    first = [made.parameters()["text_encoder"][0] for made in (alone, both, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_file_comes_back_as_it_was_and_its_hash_is_that_of_the_bytes_behind_the_header(bundle, adapter, tmp_path: Path):
    stir(adapter)
    path = tmp_path / "数据 ü.safetensors"
    sha256 = write_lora(path, adapter.state_dict(), {"ss_output_name": "x", "modelspec.title": "x"}, "float")
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()
    state, words = read_lora(path)
    assert words["ss_output_name"] == "x"
    assert all(torch.equal(state[name], tensor) for name, tensor in adapter.state_dict().items())
    assert len(state) == 3 * (192 + 24)


def test_weights_of_several_files_add_up(bundle, adapter, tmp_path: Path):
    stir(adapter)
    path = tmp_path / "a.safetensors"
    write_lora(path, adapter.state_dict(), {}, "float")
    base = answer(bundle)
    with with_loras(bundle, [(path, 0.5), (path, 0.5)]):
        halves = answer(bundle)
    with with_loras(bundle, [(path, 1.0)]):
        whole = answer(bundle)
    with with_loras(bundle, [(path, 0.0)]):
        assert torch.equal(answer(bundle), base)
    assert torch.allclose(halves, whole, atol=1e-5)
    assert not torch.allclose(whole, base, atol=1e-3)
    assert torch.equal(answer(bundle), base)


def test_values_that_are_not_finite_are_never_saved(bundle, adapter, tmp_path: Path):
    with torch.no_grad():
        adapter.parameters()["unet"][0].fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        write_lora(tmp_path / "a.safetensors", adapter.state_dict(), {}, "fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_a_tensor_is_found_out(bundle, adapter, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    state = adapter.state_dict()
    short = dict(list(state.items())[:-1])
    write_lora(path, short, {}, "fp16")
    with pytest.raises(TrainingError, match="not written correctly"):
        verify_written(path, state)


def test_a_network_of_another_shape_is_refused(bundle, adapter, toy_checkpoint: Path):
    with pytest.raises(ModelError, match="does not fit"):
        adapter.load_state_dict(LoraAdapter(bundle, rank=8, alpha=8, parts=("unet", "text_encoder")).state_dict())
    with pytest.raises(TrainerError, match="not a network"):
        read_lora(toy_checkpoint)


def test_a_layer_that_was_not_trained_is_named(bundle, adapter):
    assert {part: len(names) for part, names in adapter.untrained_layers().items()} == {"unet": 192, "text_encoder": 24}
    stir(adapter)
    assert adapter.untrained_layers() == {"unet": [], "text_encoder": []}


@pytest.mark.parametrize(
    ("suffix", "tensor", "said"),
    [
        ("lora_down.weight", torch.ones(0, 64), "holds no values"),
        ("lora_up.weight", torch.full((64, 2), float("nan")), "not finite"),
        ("alpha", torch.tensor(float("inf")), "not finite"),
    ],
)
def test_a_file_without_values_or_with_infinite_ones_is_named(suffix: str, tensor: torch.Tensor, said: str, tmp_path: Path):
    from safetensors.torch import save_file

    name = "lora_unet_mid_block_attentions_0_proj_in"
    whole = {"lora_down.weight": torch.ones(2, 64), "lora_up.weight": torch.ones(64, 2), "alpha": torch.tensor(1)}
    state = {f"{name}.{key}": value for key, value in {**whole, suffix: tensor}.items()}
    save_file(state, str(tmp_path / "in.safetensors"))
    with pytest.raises(ModelError, match=rf"{name}\.{suffix} .*{said}"):
        read_lora(tmp_path / "in.safetensors")
