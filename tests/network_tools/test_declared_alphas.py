"""Alphas that stand in a file's header, or beside the file, count as those that are tensors do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, checkpoint_layers
from lora_trainer.errors import ModelError
from lora_trainer.network_tools.convert import convert
from lora_trainer.network_tools.info import info
from lora_trainer.network_tools.merge import WeightedNetwork, merge_into_checkpoint, merge_networks
from lora_trainer.network_tools.resize import ResizeOptions, resize
from tests.network_tools.made import chosen, some, state_of, write

PREFIXES = {"unet": "unet.", "text": "text_encoder."}
SUFFIXES = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


@pytest.fixture(scope="module")
def layers(base: Path) -> dict[str, CheckpointLayer]:
    return some(chosen(base), 20)


def peft_file(path: Path, layers: dict[str, CheckpointLayer], header: dict[str, Any] | str | None, wrapper: str = "") -> Path:
    """The layers in PEFT's names without alphas."""
    state = {}
    for key, tensor in state_of(layers).items():
        name, _, suffix = key.partition(".")
        if suffix != "alpha":
            prefix = wrapper or PREFIXES[layers[name].part]
            state[f"{prefix}{layers[name].path}.{SUFFIXES[suffix]}"] = tensor
    text = header if isinstance(header, str) or header is None else json.dumps(header)
    save_file(state, str(path), {} if text is None else {"lora_adapter_metadata": text, "format": "pt"})
    return path


def kohya_file(path: Path, layers: dict[str, CheckpointLayer], alphas: dict[str, float]) -> Path:
    """The same layers in sd-scripts' names with these alphas, by part or by layer."""
    state = state_of(layers)
    for name, layer in layers.items():
        state[f"{name}.alpha"] = torch.tensor(alphas.get(name, alphas[layer.part]))
    return write(path, state)


def same_model(base: Path, one: Path, other: Path, tmp_path: Path) -> bool:
    for number, path in enumerate((one, other)):
        merge_into_checkpoint(base, [WeightedNetwork(path)], tmp_path / f"model{number}.safetensors", precision="float")
    first, second = (load_file(str(tmp_path / f"model{number}.safetensors")) for number in (0, 1))
    return all(torch.equal(first[key], second[key]) for key in first)


def test_alphas_of_the_header_count(base: Path, layers: dict[str, CheckpointLayer], tmp_path: Path):
    header = {"unet.lora_alpha": 12, "unet.r": 4, "text_encoder.lora_alpha": 2, "text_encoder.r": 4}
    ours = peft_file(tmp_path / "header.safetensors", layers, header)
    assert same_model(base, ours, kohya_file(tmp_path / "k.safetensors", layers, {"unet": 12.0, "text": 2.0}), tmp_path)
    facts = info(ours)
    assert {row["value"] for row in facts["alphas"]} == {2.0, 12.0} and facts["alphas_from"] == "lora_adapter_metadata"


def test_a_converted_file_holds_them_as_tensors_and_no_tool_counts_them_twice(
    base: Path, layers: dict[str, CheckpointLayer], tmp_path: Path
):
    header = {"unet.lora_alpha": 12, "text_encoder.lora_alpha": 2}
    ours = peft_file(tmp_path / "header.safetensors", layers, header)
    wanted = kohya_file(tmp_path / "k.safetensors", layers, {"unet": 12.0, "text": 2.0})
    convert(ours, tmp_path / "kohya.safetensors", "kohya")
    assert {float(tensor) for key, tensor in load_file(str(tmp_path / "kohya.safetensors")).items() if key.endswith("alpha")} == {2.0, 12.0}
    assert same_model(base, tmp_path / "kohya.safetensors", wanted, tmp_path)
    convert(ours, tmp_path / "diffusers.safetensors", "diffusers")
    resize(ours, tmp_path / "resized.safetensors", ResizeOptions(rank=8))
    merge_networks([WeightedNetwork(ours)], tmp_path / "merged.safetensors")
    norm = info(wanted)["norm"]
    for name in ("diffusers", "resized", "merged"):
        assert info(tmp_path / f"{name}.safetensors")["norm"] == pytest.approx(norm, rel=1e-5), name


def test_alphas_of_single_layers_and_rank_stabilised_ones_count(base: Path, layers: dict[str, CheckpointLayer], tmp_path: Path):
    special = next(name for name, layer in layers.items() if layer.part == "unet")
    header = {
        "unet.lora_alpha": 12,
        "unet.alpha_pattern": {layers[special].path: 6},
        "text_encoder.lora_alpha": 2,
        "text_encoder.use_rslora": True,
    }
    ours = peft_file(tmp_path / "header.safetensors", layers, header)
    wanted = kohya_file(tmp_path / "k.safetensors", layers, {"unet": 12.0, "text": 4.0, special: 6.0})  # 2 / sqrt(4) = 4 / 4
    assert same_model(base, ours, wanted, tmp_path)


def test_an_alpha_beside_the_file_counts_for_pefts_own_files(base: Path, layers: dict[str, CheckpointLayer], tmp_path: Path):
    unet = {name: layer for name, layer in layers.items() if layer.part == "unet"}
    ours = peft_file(tmp_path / "adapter_model.safetensors", unet, None, "base_model.model.")
    assert info(ours)["alphas"] == [] and info(ours)["alphas_from"] == ""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 12}', encoding="utf-8")
    assert same_model(base, ours, kohya_file(tmp_path / "k.safetensors", unet, {"unet": 12.0}), tmp_path)
    assert info(ours)["alphas_from"] == "adapter_config.json"
    other = peft_file(tmp_path / "diffusers.safetensors", unet, None)
    assert info(other)["alphas"] == []  # it is not PEFT's file


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("[" * 100_000, "lora_adapter_metadata, which cannot be read"),
        ("[1]", "cannot be read"),
        ("{", "cannot be read"),
        ({"unet.lora_alpha": "much"}, "much in lora_adapter_metadata is not an alpha"),
        ({"unet.lora_alpha": float("nan")}, "nan in lora_adapter_metadata is not an alpha"),
        ({"unet.lora_alpha": True}, "is not an alpha"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"((a+)+)+$": 3}}, "is not a layer's name"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": [1]}, "cannot be read"),
    ],
)
def test_alphas_that_cannot_be_read_are_refused(layers: dict[str, CheckpointLayer], header: Any, said: str, tmp_path: Path):
    with pytest.raises(ModelError, match=said):
        info(peft_file(tmp_path / "in.safetensors", layers, header))


def test_a_header_without_alphas_for_a_part_means_alpha_equal_to_rank(base: Path, layers: dict[str, CheckpointLayer], tmp_path: Path):
    ours = peft_file(tmp_path / "in.safetensors", layers, {"unet.lora_alpha": 12})
    assert same_model(base, ours, kohya_file(tmp_path / "k.safetensors", layers, {"unet": 12.0, "text": 4.0}), tmp_path)
    assert checkpoint_layers(base)[0].family == "sd1"
