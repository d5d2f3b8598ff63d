"""Side by side with PEFT's and diffusers' own code: what their files add here is what they add there, and the other way round.

PEFT is installed on the newer leg only (requirements-test.txt).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_trainer import assets
from lora_trainer.adapters.files.checked_network import open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import released_layers
from lora_trainer.adapters.network_file import delta_of
from lora_trainer.host.devices import default_device
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.network_tools.convert import convert
from lora_trainer.network_tools.resize import ResizeOptions, resize
from tests.network_tools.made import chosen, state_of, write

TARGETS = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"]
TARGETS += ["up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v", "up_blocks.3.attentions.2.proj_in"]


@pytest.fixture(scope="module")
def bundle(toy_checkpoint: Path) -> ModelBundle:
    return load(FileSource(toy_checkpoint), default_device()[0], torch.float32)


LORA: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 12},
    "rank-stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 12, "rank_pattern": {"to_q": 2, TARGETS[1]: 6}, "alpha_pattern": {"attn2.to_v": 5, "proj_in": 1}},
    "patterns, rank-stabilised": {
        "r": 4,
        "lora_alpha": 12,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_q": 7, "to_out.0": 3},
        "use_rslora": True,
    },
    "DoRA": {"r": 4, "lora_alpha": 6, "use_dora": True},
}


def saved(model: nn.Module, config: Any, folder: Path) -> tuple[Path, nn.Module]:
    """A file that PEFT itself writes, with every tensor filled, and PEFT's model."""
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    theirs.save_pretrained(str(folder))
    return folder / "adapter_model.safetensors", theirs


def compare(path: Path, theirs: nn.Module, unet: nn.Module, tolerance: float = 1e-6) -> None:
    """Each weight with our delta against PEFT's merged one."""
    file = open_network(path)
    paths = {name: layer.path for name, layer in released_layers(file.family).items()}
    before = {path: unet.get_submodule(path).weight.detach().clone() for path in TARGETS}
    merged = theirs.merge_and_unload()
    states = read_modules(file)
    assert {paths[name] for name in states} == set(TARGETS)
    for name, state in states.items():
        weight = before[paths[name]]
        ours = weight + delta_of(state, weight).reshape(weight.shape)
        after = merged.get_submodule(paths[name]).weight.detach()
        assert not torch.allclose(after, weight, atol=1e-4)
        assert torch.allclose(ours, after, rtol=1e-5, atol=tolerance), name


@pytest.mark.parametrize("way", list(LORA))
def test_a_file_of_peft_adds_what_peft_adds(bundle: ModelBundle, way: str, tmp_path: Path):
    path, theirs = saved(bundle.unet, peft.LoraConfig(target_modules=TARGETS, **LORA[way]), tmp_path)
    compare(path, theirs, bundle.unet)


@pytest.mark.parametrize(("kind", "rank"), [("LoHaConfig", 4), ("LoKrConfig", 2), ("LoKrConfig", 64)])
def test_a_loha_or_lokr_of_peft_adds_what_peft_adds(bundle: ModelBundle, kind: str, rank: int, tmp_path: Path):
    config = getattr(peft, kind)(r=rank, alpha=12, target_modules=TARGETS[:3])  # a LoKr of rank 64 has whole matrices
    path, theirs = saved(bundle.unet, config, tmp_path)
    file = open_network(path)
    paths = {name: layer.path for name, layer in released_layers(file.family).items()}
    for name, state in read_modules(file).items():
        layer = theirs.get_submodule(f"base_model.model.{paths[name]}")
        delta = layer.get_delta_weight("default").detach()
        assert torch.allclose(delta_of(state, layer.weight), delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("to", ["diffusers", "peft"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_converted_file_adds_in_diffusers_what_it_adds_here(bundle: ModelBundle, mixed: bool, to: str, tmp_path: Path):
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    layers = {name: layer for name, layer in chosen(assets.toy_checkpoint()).items() if layer.path in TARGETS}
    path = write(tmp_path / "a.safetensors", state_of(layers, alpha=3.0))
    if mixed:
        resize(path, tmp_path / "mixed.safetensors", ResizeOptions(rank=4, blocks={"mid": 2, "down 0": 1}), precision="float")
        path = tmp_path / "mixed.safetensors"
    convert(path, tmp_path / f"{to}.safetensors", to)
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(load_file(str(tmp_path / f"{to}.safetensors")))
    unet = copy.deepcopy(bundle.unet)
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet, adapter_name="one")
    paths = {name: layer.path for name, layer in layers.items()}
    for name, module in read_modules(open_network(path)).items():
        layer = unet.get_submodule(paths[name])
        theirs = layer.get_delta_weight("one").detach()
        assert torch.allclose(delta_of(module, layer.weight), theirs, rtol=1e-5, atol=1e-6), name
