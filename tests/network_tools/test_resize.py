"""Other ranks: as small as asked, no worse than the singular values say, and untouched where nothing is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.adapters.network_file import delta_of, empty_weight, modules_of
from lora_trainer.errors import ModelError
from lora_trainer.network_tools.resize import ResizeOptions, resize
from tests.network_tools.made import CONVOLUTIONS, chosen, deltas, state_of, write


def test_the_same_rank_changes_no_bit(lora: Path, tmp_path: Path):
    resize(lora, tmp_path / "same.safetensors", ResizeOptions(rank=4))
    before, after = load_file(str(lora)), load_file(str(tmp_path / "same.safetensors"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert before.keys() == after.keys()


def test_energy_of_one_by_way_of_the_singular_values_is_lossless(lora: Path, tmp_path: Path):
    told = resize(lora, tmp_path / "same.safetensors", ResizeOptions(rank=4, energy=1 - 1e-13))
    before, after = deltas(lora), deltas(tmp_path / "same.safetensors")
    assert {line.after for line in told} == {4}
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-6


def test_a_lower_rank_loses_what_the_singular_values_say(lora: Path, tmp_path: Path):
    told = {line.name: line for line in resize(lora, tmp_path / "less.safetensors", ResizeOptions(rank=2))}
    before, after = deltas(lora), deltas(tmp_path / "less.safetensors")
    for name in before:
        values = torch.linalg.svdvals(before[name])
        beyond = float(values[2:].norm())
        assert float((before[name] - after[name]).norm()) == pytest.approx(beyond, rel=1e-4)
        assert told[name].residual_norm == pytest.approx(beyond, rel=1e-6)
        assert (told[name].before, told[name].after) == (4, 2)


def test_energy_takes_as_few_ranks_as_hold_it(lora: Path, tmp_path: Path):
    told = {line.name: line for line in resize(lora, tmp_path / "less.safetensors", ResizeOptions(energy=0.9))}
    for name, delta in deltas(lora).items():
        held = torch.cumsum(torch.linalg.svdvals(delta).square(), 0)
        assert told[name].after == int((held / held[-1] < 0.9).sum()) + 1


def test_blocks_and_convolutions_have_ranks_of_their_own(base: Path, tmp_path: Path):
    path = write(tmp_path / "locon.safetensors", state_of(chosen(base, CONVOLUTIONS)))
    told = {line.name: line.after for line in resize(path, tmp_path / "less.safetensors", ResizeOptions(3, conv_rank=2, blocks={"mid": 1}))}
    assert told["lora_unet_down_blocks_0_resnets_0_conv1"] == 2
    assert told["lora_unet_mid_block_resnets_0_conv2"] == 1
    assert told["lora_unet_mid_block_attentions_0_proj_in"] == 1
    assert told["lora_unet_up_blocks_1_attentions_0_proj_in"] == 3


def test_an_unknown_block_is_named_with_those_that_are_there(lora: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no block called middle") as refused:
        resize(lora, tmp_path / "less.safetensors", ResizeOptions(blocks={"middle": 1}))
    assert "down 0, down 1, down 2, mid" in str(refused.value)


@pytest.mark.parametrize(("kind", "options"), [("loha", {}), ("lokr", {"factor": 4}), ("lora", {"tucker": True}), ("full", {})])
def test_other_kinds_become_the_best_lora_of_the_rank(base: Path, tmp_path: Path, kind: str, options: dict):
    layers = {name: layer for name, layer in chosen(base, CONVOLUTIONS).items() if "mid" in name or "conv" in name}
    path = write(tmp_path / "other.safetensors", state_of(layers, kind, **options))
    resize(path, tmp_path / "lora.safetensors", ResizeOptions(rank=3))
    after = deltas(tmp_path / "lora.safetensors")
    assert after.keys() == layers.keys()
    for name, state in modules_of(load_file(str(path)), str(path)).items():
        before = delta_of(state, empty_weight(layers[name].shape)).flatten(1)
        beyond = float(torch.linalg.svdvals(before)[3:].norm())
        assert float((before - after[name]).norm()) == pytest.approx(beyond, rel=1e-3, abs=1e-5)


def test_the_first_ranks_of_a_dylora_are_cut_out_at_the_scale_that_hosts_give_them(lora: Path, tmp_path: Path):
    resize(lora, tmp_path / "cut.safetensors", ResizeOptions(rank=2, cut=True))
    whole, cut = load_file(str(lora)), load_file(str(tmp_path / "cut.safetensors"))
    for key in (key for key in cut if key.endswith(".lora_down.weight")):
        name = key.removesuffix(".lora_down.weight")
        sliced = whole[f"{name}.lora_up.weight"].flatten(1)[:, :2] @ whole[key].flatten(1)[:2] * (2.0 / 4)  # alpha / the whole rank
        made = cut[f"{name}.lora_up.weight"].flatten(1) @ cut[key].flatten(1) * (float(cut[f"{name}.alpha"]) / 2)
        torch.testing.assert_close(sliced, made, rtol=1e-6, atol=1e-7)  # two products of float32, added in another order


def test_the_header_says_the_new_rank_and_keeps_the_rest(lora: Path, tmp_path: Path):
    resize(lora, tmp_path / "less.safetensors", ResizeOptions(rank=2))
    with safe_open(str(tmp_path / "less.safetensors"), "pt") as file:
        words = file.metadata()
    assert (words["ss_network_dim"], words["ss_network_alpha"]) == ("2", "1")
    assert (words["ss_sd_model_name"], words["ss_output_name"]) == ("base.safetensors", "less")
    assert len(words["sshs_model_hash"]) == 64


def test_a_dora_keeps_its_strengths(base: Path, tmp_path: Path):
    path = write(tmp_path / "dora.safetensors", state_of(chosen(base), dora="in"))
    resize(path, tmp_path / "less.safetensors", ResizeOptions(rank=2))
    before, after = load_file(str(path)), load_file(str(tmp_path / "less.safetensors"))
    scales = [key for key in before if key.endswith("dora_scale")]
    assert scales
    assert all(torch.equal(before[key], after[key]) for key in scales)


def test_what_turns_weights_has_no_rank_of_its_own(base: Path, tmp_path: Path):
    path = write(tmp_path / "oft.safetensors", state_of(chosen(base), "oft"))
    with pytest.raises(ModelError, match="whose effect depends on"):
        resize(path, tmp_path / "less.safetensors", ResizeOptions(rank=2))
    assert not (tmp_path / "less.safetensors").exists()
