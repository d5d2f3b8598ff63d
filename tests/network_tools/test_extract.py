"""What two checkpoints differ by, given back as a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.errors import ModelError
from lora_trainer.network_tools.extract import ExtractOptions, extract
from lora_trainer.network_tools.merge import WeightedNetwork, merge_into_checkpoint
from tests.network_tools.made import CONVOLUTIONS, chosen, deltas, state_of, write


@pytest.mark.parametrize("family", ["sd1", "sd2", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_what_was_merged_comes_back(checkpoint: Callable[[str], Path], tmp_path: Path, family: str):
    model = checkpoint(family)
    version = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[family]
    lora = write(tmp_path / "in.safetensors", state_of(chosen(model)), {"ss_base_model_version": version})
    merge_into_checkpoint(model, [WeightedNetwork(lora)], tmp_path / "tuned.safetensors")
    found = extract(model, tmp_path / "tuned.safetensors", tmp_path / "out.safetensors", ExtractOptions(rank=4), precision="float")
    before, after = deltas(lora), deltas(tmp_path / "out.safetensors")
    assert (found.family, found.layers, found.unchanged) == (family, len(before), 0)
    assert found.energy > 1 - 1e-6
    for name, delta in before.items():
        assert float((delta - after[name]).norm()) < 1e-4 * float(delta.norm()) + 1e-5, name


def test_no_less_is_kept_than_the_chosen_energy(base: Path, lora: Path, tmp_path: Path):
    merge_into_checkpoint(base, [WeightedNetwork(lora)], tmp_path / "tuned.safetensors")
    found = extract(base, tmp_path / "tuned.safetensors", tmp_path / "out.safetensors", ExtractOptions(energy=0.8), precision="float")
    before, after = deltas(lora), deltas(tmp_path / "out.safetensors")
    assert sum(rank < 4 for rank in found.ranks.values()) > len(found.ranks) / 2
    for name, delta in before.items():
        assert float((delta - after[name]).square().sum()) <= 0.2 * float(delta.square().sum()) + 1e-6


def test_convolutions_are_taken_where_they_get_a_rank(base: Path, tmp_path: Path):
    locon = write(tmp_path / "locon.safetensors", state_of(chosen(base, CONVOLUTIONS)))
    merge_into_checkpoint(base, [WeightedNetwork(locon)], tmp_path / "tuned.safetensors")
    narrow = extract(base, tmp_path / "tuned.safetensors", tmp_path / "a.safetensors", ExtractOptions(rank=4), precision="float")
    wide = extract(base, tmp_path / "tuned.safetensors", tmp_path / "b.safetensors", ExtractOptions(4, conv_rank=4), precision="float")
    assert wide.layers == narrow.layers + len(CONVOLUTIONS)
    before, after = deltas(locon), deltas(tmp_path / "b.safetensors")
    name = "lora_unet_mid_block_resnets_0_conv2"
    assert load_file(str(tmp_path / "b.safetensors"))[f"{name}.lora_down.weight"].shape[2:] == (3, 3)
    assert torch.allclose(before[name], after[name], atol=1e-5)


def test_layers_in_which_nothing_differs_are_left_out(base: Path, tmp_path: Path):
    layers = {name: layer for name, layer in chosen(base).items() if "mid_block" in name}
    lora = write(tmp_path / "mid.safetensors", state_of(layers))
    merge_into_checkpoint(base, [WeightedNetwork(lora)], tmp_path / "tuned.safetensors")
    found = extract(base, tmp_path / "tuned.safetensors", tmp_path / "out.safetensors", ExtractOptions())
    assert found.ranks.keys() == layers.keys()
    assert found.unchanged == len(chosen(base)) - len(layers)


def test_two_that_do_not_belong_together_or_do_not_differ_are_refused(base: Path, checkpoint: Callable[[str], Path], tmp_path: Path):
    with pytest.raises(ModelError, match=r"of the family Stable Diffusion 1, .* of Stable Diffusion 2"):
        extract(base, checkpoint("sd2"), tmp_path / "out.safetensors", ExtractOptions())
    with pytest.raises(ModelError, match="do not differ"):
        extract(base, base, tmp_path / "out.safetensors", ExtractOptions())
    narrow = load_file(str(base))
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    narrow[key] = narrow[key][:, :-1].contiguous()
    save_file(narrow, str(tmp_path / "narrow.safetensors"))
    with pytest.raises(ModelError, match="of another shape in narrow"):
        extract(base, tmp_path / "narrow.safetensors", tmp_path / "out.safetensors", ExtractOptions())
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_that_differ_by_rounding_alone_are_counted_and_can_be_left_out(base: Path, dtype: torch.dtype, tmp_path: Path):
    layers = {name: layer for name, layer in chosen(base).items() if "mid_block" in name}
    merge_into_checkpoint(
        base, [WeightedNetwork(write(tmp_path / "mid.safetensors", state_of(layers)))], tmp_path / "tuned.safetensors", precision="float"
    )
    full = tmp_path / "base.safetensors"
    save_file({key: tensor.float() for key, tensor in load_file(str(base)).items()}, str(full))
    tuned = {key: tensor.to(dtype) for key, tensor in load_file(str(tmp_path / "tuned.safetensors")).items()}
    save_file(tuned, str(tmp_path / "tuned.safetensors"))
    whole = extract(full, tmp_path / "tuned.safetensors", tmp_path / "a.safetensors", ExtractOptions(rank=4))
    assert (whole.layers + whole.unchanged, whole.rounding + whole.unchanged) == (len(chosen(base)), len(chosen(base)) - len(layers))
    assert whole.rounding > 0
    trained = extract(full, tmp_path / "tuned.safetensors", tmp_path / "b.safetensors", ExtractOptions(rank=4, skip_rounding=True))
    assert trained.ranks.keys() == layers.keys() and (trained.rounding, trained.unchanged) == (whole.rounding, whole.unchanged)
    save_file({key: tensor.to(dtype) for key, tensor in load_file(str(full)).items()}, str(tmp_path / "copy.safetensors"))
    with pytest.raises(ModelError, match="by rounding alone"):
        extract(full, tmp_path / "copy.safetensors", tmp_path / "c.safetensors", ExtractOptions(skip_rounding=True))
