"""What is told of a file: kind, family, ranks, strength, hash, and whether its layers are a model's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_trainer.adapters.lora_file import write_lora
from lora_trainer.network_tools.info import info, trained_on
from lora_trainer.network_tools.verify import verify
from tests.network_tools.made import CONVOLUTIONS, WORDS, chosen, deltas, some, state_of, write

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def test_a_lora_is_told_with_its_ranks_and_its_strength_by_block(lora: Path):
    found = info(lora)
    assert (found["kind"], found["family"], found["naming"], found["dtype"]) == ("lora", "sd1", "kohya", "F32")
    assert found["ranks"] == [{"value": 4, "modules": 216}]
    assert found["alphas"] == [{"value": 2.0, "modules": 216}]
    assert found["modules"] == {"unet": 192, "text_encoder": 24}
    blocks = {row["block"]: row["norm"] for row in found["blocks"]}
    wanted = sum(float(delta.square().sum()) for name, delta in deltas(lora).items() if "_mid_block_" in name) ** 0.5
    assert blocks["mid"] == pytest.approx(wanted, rel=1e-5)
    assert found["norm"] == pytest.approx(sum(norm**2 for norm in blocks.values()) ** 0.5)
    assert list(blocks)[:4] == ["down 0", "down 1", "down 2", "mid"]
    assert found["trained_on"]["base_model"] == "base.safetensors"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("lora", {}, "locon"),
        ("loha", {}, "loha"),
        ("lokr", {}, "lokr"),
        ("full", {}, "full"),
        ("oft", {}, "oft"),
        ("lora", {"dora": "in"}, "dora"),
    ],
)
def test_every_kind_is_told_by_name(base: Path, tmp_path: Path, kind: str, options: dict, said: str):
    layers = {name: layer for name, layer in chosen(base, CONVOLUTIONS).items() if "mid" in name}
    found = info(write(tmp_path / "any.safetensors", state_of(layers, kind, **options)))
    assert found["kind"] == said
    assert (found["norm"] is None) == (said in ("dora", "oft"))


def test_the_hash_is_the_webuis_and_one_that_does_not_fit_is_seen(base: Path, tmp_path: Path):
    state = state_of(chosen(base))
    write_lora(tmp_path / "ours.safetensors", state, WORDS, "float")
    found = info(tmp_path / "ours.safetensors")["hashes"]
    content = (tmp_path / "ours.safetensors").read_bytes()
    behind = content[8 + int.from_bytes(content[:8], "little") :]
    assert found["webui"] == hashlib.sha256(behind).hexdigest()[:12]
    assert found["as_said"]
    assert not info(write(tmp_path / "wrong.safetensors", state, {**WORDS, "sshs_model_hash": "0" * 64}))["hashes"]["as_said"]


@pytest.mark.parametrize("family", list(VERSIONS))
def test_a_network_fits_the_model_it_was_made_for(checkpoint: Callable[[str], Path], tmp_path: Path, family: str):
    layers = some(chosen(checkpoint(family)), 3)
    path = write(tmp_path / "made.safetensors", state_of(layers), {"ss_base_model_version": VERSIONS[family]})
    found = verify(path, model=checkpoint(family))
    assert (found.matched, found.unmatched, found.family) == (len(layers), (), family)
    assert found.to_json()["unmatched"] == 0


def test_layers_that_the_model_has_not_or_in_another_shape_are_named(
    base: Path, checkpoint: Callable[[str], Path], lora: Path, tmp_path: Path
):
    state = state_of(chosen(base))
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    state[f"{name}.lora_up.weight"] = torch.zeros(7, 4)
    renamed = {key.replace("mid_block_attentions_0_proj_out", "mid_block_made_up"): tensor for key, tensor in state.items()}
    found = verify(write(tmp_path / "odd.safetensors", renamed), model=base)
    assert found.matched == 214
    assert {name for name, _ in found.unmatched} == {name, "lora_unet_mid_block_made_up"}
    foreign = verify(lora, model=checkpoint("sdxl"))
    assert len(foreign.unmatched) > 100


def test_a_file_that_a_webui_reads_in_part_or_not_says_so(base: Path, tmp_path: Path):
    oft = verify(write(tmp_path / "oft.safetensors", state_of(some(chosen(base)), "oft")))
    assert {host: loads for host, loads, _ in oft.hosts} == {"a1111": "all", "forge": "no", "reforge": "partly", "neo": "partly"}
    dora = verify(write(tmp_path / "dora.safetensors", state_of(some(chosen(base)), dora="in")))
    assert {loads for _, loads, _ in dora.hosts} == {"all"}
    out = verify(write(tmp_path / "out.safetensors", state_of(some(chosen(base)), dora="out")))
    assert {loads for _, loads, _ in out.hosts} == {"partly"}


def test_tags_folders_and_size_of_a_dataset_file_are_told(base: Path, tmp_path: Path):
    subsets = [{"image_dir": "vase", "num_repeats": 2, "img_count": 10}, {"image_dir": "class", "is_reg": True}]
    datasets = [{"resolution": [448, 448], "tag_frequency": {"vase": {"vase": 9, "blue": 4}}, "subsets": subsets}]
    layers = {name: layer for name, layer in chosen(base).items() if "mid" in name}
    found = info(write(tmp_path / "a.safetensors", state_of(layers), {**WORDS, "ss_datasets": json.dumps(datasets)}))["trained_on"]
    assert found["tags"] == [{"tag": "vase", "count": 9}, {"tag": "blue", "count": 4}]
    assert found["folders"] == {"vase": {"n_repeats": 2, "img_count": 10}} and found["resolution"] == "(448, 448)"
    broken = info(write(tmp_path / "b.safetensors", state_of(layers), {**WORDS, "ss_datasets": "[{"}))["trained_on"]
    assert "tags" not in broken and "resolution" not in broken


LINEAR = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2)}


def named(path: Path, *names: str) -> Path:
    return write(path, {f"{name}.{suffix}": tensor.clone() for name in names for suffix, tensor in LINEAR.items()}, {})


def test_each_host_is_told_by_the_layers_that_it_finds(tmp_path: Path):
    q = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    te1, te2 = (f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj" for number in (1, 2))
    loads = {
        names: [row[1] for row in verify(named(tmp_path / "in.safetensors", *names)).hosts]
        for names in (
            (q, te1, te2),
            (q, "lora_te2_text_projection"),
            (q, "lora_te1_text_model_encoder_layers_0_layer_norm1"),
            (q, "lora_te2_text_model_encoder_layers_0_layer_norm1"),
            (q, "lora_unet_up_blocks_0_upsamplers_0_conv"),
        )
    }
    assert list(loads.values()) == [
        ["all", "all", "all", "all"],
        ["partly", "all", "all", "partly"],
        ["all", "partly", "partly", "partly"],
        ["partly", "partly", "partly", "partly"],
        ["partly", "all", "all", "all"],
    ]
    report = verify(named(tmp_path / "in.safetensors", q, "lora_te2_text_projection")).to_json()
    assert "1 of 2 layers, the first is lora_te2_text_projection" in report["hosts"][0]["why"]


def test_a_layer_that_no_model_of_the_family_has_is_read_by_no_host(tmp_path: Path):
    q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    found = verify(named(tmp_path / "in.safetensors", q, "lora_te_text_projection"))
    assert [loads for _, loads, _ in found.hosts] == ["partly"] * 4


def test_forge_refuses_a_file_with_many_keys_that_it_does_not_know(tmp_path: Path):
    q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    norms = [f"lora_te_text_model_encoder_layers_{number}_layer_norm1" for number in range(7)]
    few, many = (verify(named(tmp_path / "in.safetensors", q, *norms[:count])) for count in (6, 7))
    assert {host: loads for host, loads, _ in few.hosts} == {"a1111": "all", "forge": "partly", "reforge": "partly", "neo": "no"}
    assert {host: loads for host, loads, _ in many.hosts} == {"a1111": "all", "forge": "no", "reforge": "partly", "neo": "no"}


def test_names_that_a_host_reads_besides_sd_scripts_are_known(tmp_path: Path):
    ldm = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    assert [loads for _, loads, _ in verify(named(tmp_path / "in.safetensors", ldm)).hosts] == ["all"] * 4
    comfyui = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    assert [loads for _, loads, _ in verify(named(tmp_path / "in.safetensors", comfyui)).hosts] == ["no", "all", "all", "all"]
    omi = "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    assert [loads for _, loads, _ in verify(named(tmp_path / "in.safetensors", omi)).hosts] == ["no"] * 4


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[1, null]", '[{"subsets": 1, "tag_frequency": [2], "resolution": null}]', '{"a": 1}']
)
def test_a_header_that_is_no_json_of_a_trainer_tells_nothing(text: str):
    assert trained_on({"ss_datasets": text, "ss_dataset_dirs": text if text != '{"a": 1}' else "{", "ss_tag_frequency": text}) == {}


@pytest.mark.parametrize(
    ("folders", "pictures"),
    [
        ({"10_a": {"n_repeats": 30, "img_count": 18}}, 18),
        ({"10_a": {"n_repeats": 3, "img_count": 18}, "b": {"n_repeats": 1, "img_count": 2}}, 20),
        ({"10_a": {"n_repeats": 3}}, None),
        ({"10_a": {"img_count": "18"}}, None),
        ({}, None),
    ],
)
def test_pictures_are_counted_once_however_often_they_are_repeated(folders: dict, pictures: int | None):
    facts = trained_on({"ss_dataset_dirs": json.dumps(folders), "ss_num_train_images": "540"})
    assert (facts.get("pictures"), facts["examples"]) == (pictures, "540")


def test_a_field_that_says_none_does_not_hide_what_the_data_sets_say():
    datasets = '[{"resolution": [448, 448], "tag_frequency": {"a": {"b": 1}}}]'
    facts = trained_on({"ss_datasets": datasets, "ss_resolution": "None", "ss_tag_frequency": "{}"})
    assert facts == {"resolution": "(448, 448)", "tags": [{"tag": "b", "count": 1}]}
