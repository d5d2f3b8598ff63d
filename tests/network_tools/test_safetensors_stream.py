"""Large files pass through tensor by tensor, and layers are where the released models and their checkpoints have them."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.adapters.files.checkpoint_layers import block_of, checkpoint_layers, released_layers
from lora_trainer.models.files.safetensors_stream import open_tensors, write_streamed
from lora_trainer.models.files.tensor_file import TensorInfo
from lora_trainer.network_tools.extract import read_slice


def test_one_tensor_is_held_at_a_time(tmp_path: Path):
    seen: list[weakref.ref[torch.Tensor]] = []

    def made(name: str) -> torch.Tensor:
        assert all(known() is None for known in seen), "an earlier tensor is still there"
        tensor = torch.full((64, 64), float(name))
        seen.append(weakref.ref(tensor))
        return tensor

    entries = {str(number): TensorInfo("F32", (64, 64)) for number in range(5)}
    sha256 = write_streamed(tmp_path / "out.safetensors", entries, made, {"who": "me"})
    assert len(seen) == 5
    found = load_file(str(tmp_path / "out.safetensors"))
    assert all(bool((found[name] == float(name)).all()) for name in entries)
    assert sha256 == hashlib.sha256((tmp_path / "out.safetensors").read_bytes()).hexdigest()


def test_every_number_format_is_written_as_it_is(tmp_path: Path):
    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "U8": torch.uint8,
    }
    tensors = {word: torch.arange(3).to(dtype) for word, dtype in kinds.items()} | {"I32": torch.tensor(7, dtype=torch.int32)}
    entries = {word: TensorInfo(word, tuple(tensor.shape)) for word, tensor in tensors.items()}
    write_streamed(tmp_path / "out.safetensors", entries, tensors.__getitem__, {})
    with safe_open(str(tmp_path / "out.safetensors"), "pt") as file:
        for word, tensor in tensors.items():
            assert torch.equal(file.get_tensor(word), tensor) and file.get_tensor(word).dtype == tensor.dtype


@pytest.mark.parametrize(("family", "attention", "text"), [("sd1", 192, 72), ("sd2", 192, 138), ("sdxl", 722, 264)])
def test_released_models_have_as_many_layers_as_their_networks(family: str, attention: int, text: int):
    layers = [layer for layer in released_layers(family).values() if len(layer.shape) > 1]
    assert sum(layer.part == "unet" and ".attentions." in layer.path for layer in layers) == attention
    assert sum(layer.part != "unet" and ".layers." in layer.path for layer in layers) == text


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_checkpoints_layers_are_those_of_its_family_and_stand_where_it_says(checkpoint: Callable[[str], Path], family: str):
    row, layers = checkpoint_layers(checkpoint(family))
    stock = released_layers(family)
    assert row.family == family
    lacking = [name for name in set(stock) - set(layers) if stock[name].part == "unet"]
    assert all("shortcut" in name for name in lacking)  # where two widths of the small one are the same
    assert set(layers) <= set(stock)  # the small encoders have fewer layers
    assert all(layers[name].weight.key == stock[name].weight.key for name in layers if layers[name].part == "unet")
    with open_tensors(checkpoint(family)) as tensor_of:
        for layer in list(layers.values())[::40]:
            assert tuple(read_slice(tensor_of, layer.weight).shape) == layer.shape
    assert {"mid", "up 0", "down 1"} <= {block_of(layer) for layer in layers.values()}
