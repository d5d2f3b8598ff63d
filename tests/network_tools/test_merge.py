"""Sums of networks: as if all of them were in the prompt, in one file or in the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.files.checkpoint_layers import checkpoint_layers
from lora_trainer.adapters.lora_file import with_loras
from lora_trainer.adapters.network_file import delta_of, modules_of
from lora_trainer.errors import ModelError
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.network_tools.merge import WeightedNetwork, merge_into_checkpoint, merge_networks
from tests.network_tools.made import CONVOLUTIONS, NORMS, chosen, deltas, some, state_of, write

CPU = torch.device("cpu")


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "other.safetensors", state_of(chosen(base), rank=3, seed=5))


def test_a_merge_adds_up_exactly_what_its_parts_add(lora: Path, other: Path, tmp_path: Path):
    merged = merge_networks([WeightedNetwork(lora, 0.5, 0.25), WeightedNetwork(other, -1.0, 2.0)], tmp_path / "sum.safetensors")
    one, two, both = deltas(lora), deltas(other), deltas(tmp_path / "sum.safetensors")
    assert merged.rank == 7
    for name in one:
        weights = (0.5, -1.0) if name.startswith("lora_unet_") else (0.25, 2.0)
        assert torch.allclose(both[name], one[name] * weights[0] + two[name] * weights[1], atol=1e-6)


def test_a_merge_of_a_given_rank_loses_what_it_says(lora: Path, other: Path, tmp_path: Path):
    merged = merge_networks([WeightedNetwork(lora), WeightedNetwork(other)], tmp_path / "sum.safetensors", rank=4)
    one, two, both = deltas(lora), deltas(other), deltas(tmp_path / "sum.safetensors")
    residual_norm = sum(float((one[name] + two[name] - both[name]).square().sum()) for name in one)
    whole = sum(float((one[name] + two[name]).square().sum()) for name in one)
    assert merged.energy == pytest.approx(1 - residual_norm / whole, abs=1e-5)


def test_a_picture_with_the_merge_is_that_with_both(base: Path, lora: Path, other: Path, tmp_path: Path):
    merge_networks([WeightedNetwork(lora, 0.7, 0.7), WeightedNetwork(other, 0.4, 0.4)], tmp_path / "sum.safetensors")
    merge_into_checkpoint(base, [WeightedNetwork(lora, 0.7, 0.7), WeightedNetwork(other, 0.4, 0.4)], tmp_path / "model.safetensors")
    bundle, changed = load(FileSource(base), CPU), load(FileSource(tmp_path / "model.safetensors"), CPU)

    def noise(model) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            latents = torch.randn(1, 4, 8, 8, generator=generator)
            text = model.text_encoder(torch.arange(77)[None]).last_hidden_state
            return model.unet(latents, torch.tensor([500]), encoder_hidden_states=text).sample

    plain = noise(bundle)
    with with_loras(bundle, [(lora, 0.7), (other, 0.4)]):
        both = noise(bundle)
    with with_loras(bundle, [(tmp_path / "sum.safetensors", 1.0)]):
        merged = noise(bundle)
    assert not torch.allclose(plain, both, atol=1e-3)
    assert torch.allclose(both, merged, atol=1e-5)
    assert torch.allclose(both, noise(changed), atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "full", "dora", "oft"])
def test_a_checkpoint_gains_what_each_kind_adds_and_nothing_else_changes(base: Path, tmp_path: Path, kind: str):
    layers = {
        name: layer for name, layer in chosen(base, (*CONVOLUTIONS, *NORMS)).items() if "mid" in name or "conv" in name or "norm" in name
    }
    options = {"dora": {"dora": "in"}, "lokr": {"factor": 4}}.get(kind, {})
    path = write(tmp_path / "any.safetensors", state_of(layers, "lora" if kind == "dora" else kind, **options))
    merge_into_checkpoint(base, [WeightedNetwork(path, 0.5, 0.5)], tmp_path / "model.safetensors")
    before, after = load_file(str(base)), load_file(str(tmp_path / "model.safetensors"))
    expected = dict(before)
    for name, state in modules_of(load_file(str(path)), str(path)).items():
        place = layers[name].weight
        expected[place.key] = before[place.key] + 0.5 * delta_of(state, before[place.key])
        if (bias := state.tensors.get("diff_b", state.tensors.get("b_norm"))) is not None:
            expected[layers[name].bias.key] = before[layers[name].bias.key] + 0.5 * bias
    assert after.keys() == before.keys()
    for key, tensor in expected.items():
        assert torch.allclose(after[key], tensor, atol=1e-6), key
    assert sum(not torch.equal(before[key], after[key]) for key in before) >= len(layers)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_encoders_that_keep_three_matrices_as_one_gain_each_its_own(checkpoint: Callable[[str], Path], tmp_path: Path, family: str):
    model = checkpoint(family)
    layers = {
        name: layer for name, layer in checkpoint_layers(model)[1].items() if "layers_1_self_attn" in name or "layers_1_mlp_fc1" in name
    }
    path = write(tmp_path / "te.safetensors", state_of(layers), {"ss_base_model_version": "sd_v2" if family == "sd2" else "sdxl_base_v1-0"})
    merge_into_checkpoint(model, [WeightedNetwork(path)], tmp_path / "model.safetensors")
    before, after = load(FileSource(model), CPU), load(FileSource(tmp_path / "model.safetensors"), CPU)
    added = deltas(path)
    encoders = {"text": (before.text_encoder, after.text_encoder), "text_2": (before.text_encoder_2, after.text_encoder_2)}
    for name, layer in layers.items():
        old, new = (encoder.get_submodule(layer.path).weight.double() for encoder in encoders[layer.part])
        assert torch.allclose(new, old + added[name], atol=1e-6), name


def test_nothing_that_is_read_is_changed(base: Path, lora: Path, tmp_path: Path):
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (base, lora)]
    merge_into_checkpoint(base, [WeightedNetwork(lora)], tmp_path / "model.safetensors", precision="fp16")
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in (base, lora)] == hashes


def test_a_network_of_another_family_is_refused_by_name(base: Path, checkpoint: Callable[[str], Path], lora: Path, tmp_path: Path):
    foreign = write(tmp_path / "xl.safetensors", state_of(some(chosen(checkpoint("sdxl")))), {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(ModelError, match=r"xl\.safetensors is of the family sdxl, sd1\.safetensors of sd1: lora_"):
        merge_into_checkpoint(base, [WeightedNetwork(foreign)], tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"xl\.safetensors is of the family sdxl, plain\.safetensors of sd1"):
        merge_networks([WeightedNetwork(lora), WeightedNetwork(foreign)], tmp_path / "sum.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["xl.safetensors"]


@pytest.mark.parametrize(
    ("kind", "options", "rank"), [("loha", {}, 2 * 4 * 4), ("lokr", {"factor": 4}, 2 * 4 * 4), ("lora", {"tucker": True}, 2 * 4)]
)
def test_a_merge_of_any_kind_loses_nothing_without_a_rank(base: Path, tmp_path: Path, kind: str, options: dict, rank: int):
    layers = {name: layer for name, layer in chosen(base, CONVOLUTIONS[:1]).items() if "mid_block" in name or "conv1" in name}
    sources = [
        WeightedNetwork(write(tmp_path / f"{number}.safetensors", state_of(layers, kind, seed=number, **options)), 0.5 + number)
        for number in (0, 1)
    ]
    found = merge_networks(sources, tmp_path / "sum.safetensors")
    assert found.energy > 1 - 1e-9 and 8 <= found.rank <= rank
    merge_into_checkpoint(base, sources, tmp_path / "wanted.safetensors", precision="float")
    merge_into_checkpoint(base, [WeightedNetwork(tmp_path / "sum.safetensors")], tmp_path / "model.safetensors", precision="float")
    wanted, model = load_file(str(tmp_path / "wanted.safetensors")), load_file(str(tmp_path / "model.safetensors"))
    assert all(torch.allclose(wanted[key].float(), model[key].float(), atol=2e-6) for key in wanted)


def test_a_layer_that_no_model_of_the_family_has_is_left_out_and_told(base: Path, lora: Path, tmp_path: Path):
    state = load_file(str(lora))
    projection = {
        "lora_te_text_projection.lora_down.weight": torch.ones(4, 32),
        "lora_te_text_projection.lora_up.weight": torch.ones(32, 4),
    }
    found = merge_into_checkpoint(
        base, [WeightedNetwork(write(tmp_path / "in.safetensors", {**state, **projection}))], tmp_path / "a.safetensors"
    )
    merge_into_checkpoint(base, [WeightedNetwork(lora)], tmp_path / "b.safetensors")
    assert found.left_out == ("lora_te_text_projection",)
    one, other = load_file(str(tmp_path / "a.safetensors")), load_file(str(tmp_path / "b.safetensors"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_checkpoint_of_the_same_family_that_lacks_a_layer_is_named(base: Path, lora: Path, tmp_path: Path):
    narrow = {key: tensor for key, tensor in load_file(str(base)).items() if ".middle_block.1.transformer_blocks.0.attn1.to_q" not in key}
    save_file(narrow, str(tmp_path / "narrow.safetensors"))
    with pytest.raises(ModelError, match=r"plain\.safetensors holds lora_unet_mid_block.*to_q, which narrow\.safetensors does not have"):
        merge_into_checkpoint(tmp_path / "narrow.safetensors", [WeightedNetwork(lora)], tmp_path / "out.safetensors")


def test_a_strength_with_which_values_overflow_is_told_as_that(lora: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="not finite") as refused:
        merge_networks([WeightedNetwork(lora, 1e39, 1e39)], tmp_path / "out.safetensors")
    assert "smaller weights" in refused.value.problems[0].fix.text()


def test_dora_becomes_no_sum_of_matrices(base: Path, lora: Path, tmp_path: Path):
    dora = write(tmp_path / "dora.safetensors", state_of(chosen(base), dora="in"))
    with pytest.raises(ModelError, match="Merge it into a checkpoint instead"):
        merge_networks([WeightedNetwork(lora), WeightedNetwork(dora)], tmp_path / "sum.safetensors")
