"""Other names for the same layers: there and back a file is the same, and what comes out is what diffusers and PEFT read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.errors import ModelError
from lora_trainer.network_tools.convert import convert
from tests.network_tools.made import chosen, deltas, some, state_of, write

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def same(one: Path, other: Path) -> bool:
    before, after = load_file(str(one)), load_file(str(other))
    return before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before
    )


@pytest.mark.parametrize("family", list(VERSIONS))
@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_there_and_back_is_the_same_file(checkpoint: Callable[[str], Path], tmp_path: Path, family: str, to: str):
    state = state_of(chosen(checkpoint(family)), alpha=3.0)  # 3 / 4: no power of two
    path = write(
        tmp_path / "in.safetensors", {key: tensor.half() for key, tensor in state.items()}, {"ss_base_model_version": VERSIONS[family]}
    )
    convert(path, tmp_path / "there.safetensors", to)
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "kohya")
    assert same(path, tmp_path / "back.safetensors")


def test_float_numbers_come_back_at_scales_that_are_powers_of_two(lora: Path, tmp_path: Path):
    convert(lora, tmp_path / "there.safetensors", "peft")
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "kohya")
    assert same(lora, tmp_path / "back.safetensors")


def test_peft_names_are_module_paths_and_hold_the_scale(lora: Path, tmp_path: Path):
    convert(lora, tmp_path / "peft.safetensors", "peft")
    state = load_file(str(tmp_path / "peft.safetensors"))
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    added = state[f"{path}.lora_B.weight"].double() @ state[f"{path}.lora_A.weight"].double()
    wanted = deltas(lora)["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"]
    assert torch.allclose(added, wanted, atol=1e-7)
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in state
    assert not any("alpha" in key for key in state)


def test_diffusers_own_converters_turn_its_names_into_pefts(lora: Path, tmp_path: Path):
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    convert(lora, tmp_path / "there.safetensors", "diffusers")
    convert(lora, tmp_path / "peft.safetensors", "peft")
    theirs, ours = load_file(str(tmp_path / "there.safetensors")), load_file(str(tmp_path / "peft.safetensors"))
    for part, converter in (("unet.", convert_unet_state_dict_to_peft), ("text_encoder.", convert_state_dict_to_peft)):
        made = converter({key: tensor for key, tensor in theirs.items() if key.startswith(part)})
        assert made.keys() == {key for key in ours if key.startswith(part)}
        assert all(torch.equal(made[key], ours[key]) for key in made)


def test_sdxl_goes_between_the_checkpoints_names_and_diffusers_paths(checkpoint: Callable[[str], Path], tmp_path: Path):
    layers = {name: layer for name, layer in chosen(checkpoint("sdxl")).items() if "_4_1_" in name or "te2" in name}
    lora = write(tmp_path / "xl.safetensors", state_of(layers), {"ss_base_model_version": "sdxl_base_v1-0"})
    convert(lora, tmp_path / "peft.safetensors", "peft")
    state = load_file(str(tmp_path / "peft.safetensors"))
    before = load_file(str(lora))
    ldm = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
    assert torch.equal(state["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"], before[ldm])
    assert any(key.startswith("text_encoder_2.text_model.") for key in state)


def test_what_the_other_names_cannot_say_is_refused(base: Path, lora: Path, tmp_path: Path):
    loha = write(tmp_path / "loha.safetensors", state_of(some(chosen(base)), "loha"))
    dora = write(tmp_path / "dora.safetensors", state_of(some(chosen(base)), dora="in"))
    with pytest.raises(ModelError, match="a kind \\(loha\\) that these names do not support"):
        convert(loha, tmp_path / "out.safetensors", "peft")
    with pytest.raises(ModelError, match="DoRA over its inputs"):
        convert(dora, tmp_path / "out.safetensors", "peft")
    with pytest.raises(ModelError, match="has these names already"):
        convert(lora, tmp_path / "out.safetensors", "kohya")


def test_dora_over_outputs_goes_there_and_back(base: Path, tmp_path: Path):
    dora = write(tmp_path / "dora.safetensors", state_of(some(chosen(base)), dora="out"))
    convert(dora, tmp_path / "there.safetensors", "peft")
    assert any(key.endswith("lora_magnitude_vector.weight") for key in load_file(str(tmp_path / "there.safetensors")))
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "kohya")
    assert same(dora, tmp_path / "back.safetensors")


def test_ranks_that_differ_are_equal_in_diffusers_and_come_back(lora: Path, tmp_path: Path):
    """diffusers takes one alpha for all layers of a part, so that layers of another rank would have another strength."""
    from lora_trainer.network_tools.resize import ResizeOptions, resize

    resize(lora, tmp_path / "mixed.safetensors", ResizeOptions(blocks={"mid": 2, "up 1": 1}), precision="fp16")
    convert(tmp_path / "mixed.safetensors", tmp_path / "there.safetensors", "peft")
    ranks = {tensor.shape[0] for key, tensor in load_file(str(tmp_path / "there.safetensors")).items() if key.endswith("lora_A.weight")}
    assert ranks == {4}
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "kohya")
    assert same(tmp_path / "mixed.safetensors", tmp_path / "back.safetensors")
