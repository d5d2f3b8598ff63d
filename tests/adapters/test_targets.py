"""LoRA layers of each family: how many there are and what each is called in a file."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import attrs
import pytest
import torch

from benchmarks import random_checkpoint
from lora_trainer.adapters.lora_file import LoraAdapter, read_lora, with_loras, write_lora
from lora_trainer.adapters.targets import targets, unet_names
from lora_trainer.models.families import family
from lora_trainer.models.load import clip_tokenizer, load
from lora_trainer.models.source import LiveSource
from lora_trainer.models.tokenize import tokenize

CPU = torch.device("cpu")
INNER = r"transformer_blocks_\d_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2))"
NAMES = {
    "sd2": r"lora_unet_(down_blocks_[0-2]_attentions_[01]|mid_block_attentions_0|up_blocks_[1-3]_attentions_[0-2])_"
    rf"(proj_in|proj_out|{INNER})",
    "sdxl": rf"lora_unet_(input_blocks_[4578]_1|middle_block_1|output_blocks_[0-5]_1)_(proj_in|proj_out|{INNER})",
}
TEXT = r"_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"


@cache
def bundle_of(name: str):
    widths = attrs.evolve(random_checkpoint.SHAPES[name][1], words=49408)
    held = random_checkpoint.parts(widths, torch.float32)
    heads = 8 if name == "sd1" else 0
    second = held.get("text_2", {})
    live = LiveSource(held["unet"], held["vae"], held["text"], heads, 4, clip_tokenizer(), Path("x"), family=name, text_2_state=second)
    return load(live, CPU)


@pytest.mark.parametrize(("name", "count"), [("sd2", 192), ("sdxl", 722)])
def test_every_layer_of_the_unet_bears_the_name_of_sd_scripts(name, count):
    found = [layer for layer, _ in targets(bundle_of(name), "unet")]
    assert len(found) == len(set(found)) == count
    assert [layer for layer in found if not re.fullmatch(NAMES[name], layer)] == []


def test_the_722_layers_of_sdxl_stand_where_the_checkpoint_has_its_transformers():
    """Ten layers of a transformer, and the way in and out of each block; 2 x 2 blocks of depth 2, 2 and 1 of depth 10, 3 + 3 upwards."""
    where = Counter(re.match(r"lora_unet_([a-z]+_blocks?(?:_\d+)?)_1_", layer).group(1) for layer, _ in targets(bundle_of("sdxl"), "unet"))
    shallow, deep = 2 + 2 * 10, 2 + 10 * 10
    assert where == {
        "input_blocks_4": shallow,
        "input_blocks_5": shallow,
        "input_blocks_7": deep,
        "input_blocks_8": deep,
        "middle_block": deep,
        **{f"output_blocks_{number}": deep if number < 3 else shallow for number in range(6)},
    }


def test_every_name_of_sdxl_is_the_checkpoints_own(tmp_path: Path):
    """A host finds a layer by its own key with dots turned to underscores: so each name must be such a key."""
    held = random_checkpoint.parts(attrs.evolve(random_checkpoint.TINY_SDXL, words=100), torch.float32)["unet"]
    keys = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}" for key in held}
    assert {layer for layer, _ in targets(bundle_of("sdxl"), "unet")} <= keys
    bundle = bundle_of("sdxl")
    name_of = unet_names(bundle)
    every = {name_of(path) for path, module in bundle.unet.named_modules() if hasattr(module, "weight") and module.weight is not None}
    assert every == {key for key in keys if not key.endswith("_bias")}


@pytest.mark.parametrize(
    ("name", "prefixes"), [("sd1", {"lora_te": 24}), ("sd2", {"lora_te": 18}), ("sdxl", {"lora_te1": 24, "lora_te2": 24})]
)
def test_text_encoders_bear_their_prefixes_and_unread_layers_get_nothing(name, prefixes):
    """Six layers of each of four (of Stable Diffusion 2: three that are read) transformer layers."""
    found = [layer for layer, _ in targets(bundle_of(name), "text_encoder")]
    assert Counter(layer.partition("_text_model")[0] for layer in found) == prefixes
    assert all(re.fullmatch(r"lora_te[12]?" + TEXT, layer) for layer in found)


@pytest.mark.parametrize(
    ("name", "unet", "texts"),
    [("sd1", 192, {"lora_te": 72}), ("sd2", 192, {"lora_te": 138}), ("sdxl", 722, {"lora_te1": 72, "lora_te2": 192})],
)
def test_models_of_full_size_have_as_many_layers_as_sd_scripts_files(name, unet, texts):
    """Counted on modules without memory, built from the released shapes."""
    unet_module, _, *encoders = random_checkpoint.SHAPES[name][0].modules()
    bundle = bundle_of(name)
    whole = attrs.evolve(bundle, unet=unet_module, text_encoder=encoders[0], text_encoder_2=encoders[1] if encoders[1:] else None)
    if name == "sd2":  # the file's last layer is never built
        whole.text_encoder.text_model.encoder.layers = whole.text_encoder.text_model.encoder.layers[:-1]
    assert family(name).name == name
    assert sum(1 for _ in targets(whole, "unet")) == unet
    assert Counter(layer.partition("_text_model")[0] for layer, _ in targets(whole, "text_encoder")) == texts


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_file_of_a_family_comes_back_and_draws_what_was_trained(name, tmp_path: Path):
    bundle = bundle_of(name)
    adapter = LoraAdapter(bundle, rank=2, alpha=1.0, parts=("unet", "text_encoder"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (tensor for tensors in adapter.parameters().values() for tensor in tensors):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)

    def answer() -> torch.Tensor:
        with torch.no_grad():
            words = bundle.family.encode_text(bundle, tokenize(bundle.tokenizer, ["a red circle"]), 1)
            return bundle.family.denoise(bundle, torch.ones(1, 4, 8, 8), torch.tensor([500]), words)

    before = answer()
    adapter.attach(bundle)
    trained = answer()
    adapter.detach()
    assert torch.equal(answer(), before)
    write_lora(tmp_path / "x.safetensors", adapter.state_dict(), {}, "float")
    assert len(read_lora(tmp_path / "x.safetensors")[0]) == 3 * len(adapter.plan)
    with with_loras(bundle, [(tmp_path / "x.safetensors", 1.0)]):
        assert torch.allclose(answer(), trained, atol=1e-5)
    with with_loras(bundle, [(tmp_path / "x.safetensors", 0.0)]):
        assert torch.equal(answer(), before)
    assert not torch.allclose(trained, before, atol=1e-3)
