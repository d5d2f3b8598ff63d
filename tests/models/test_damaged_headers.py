"""Headers of safetensors files that lie about where the tensors are, and values that are no numbers, are refused by `check`."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_trainer.api.runs.start_run import find_problems
from lora_trainer.errors import ModelError
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.files.finite import require_finite
from lora_trainer.models.files.tensor_file import read_header
from tests.train.runs import small_config

TWO = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
}


def entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


WRONG = {
    "overlap": TWO | {"b": entry([2], [4, 12])},
    "the same place": TWO | {"b": entry([2], [0, 8])},
    "inside": {"a": entry([4], [0, 16]), "b": entry([1], [4, 8])},
    "a gap": TWO | {"a": entry([1], [0, 4])},
    "a gap in front": {"b": entry([2], [8, 16])},
    "behind the end": TWO | {"b": entry([2], [16, 24])},
    "far behind the end": TWO | {"b": entry([2], [2**63, 2**63 + 8])},
    "negative": TWO | {"b": entry([2], [-8, 0])},
    "backwards": TWO | {"b": entry([2], [16, 8])},
    "too small for its shape": TWO | {"b": entry([3], [8, 16])},
    "too large for its shape": TWO | {"b": entry([1], [8, 16])},
    "a negative side": TWO | {"b": entry([-2], [8, 16])},
    "a fraction": TWO | {"b": entry([2], [8.5, 16])},
    "text": TWO | {"b": entry([2], ["8", "16"])},
    "one number": TWO | {"b": entry([2], [8])},
    "three numbers": TWO | {"b": entry([2], [8, 16, 24])},
    "true": TWO | {"b": entry([True], [8, 16])},
    "no kind": TWO | {"b": entry([2], [8, 16], dtype=None)},
    "a side of text": TWO | {"b": entry(["2"], [8, 16])},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_that_is_not_where_the_header_says_is_refused(tmp_path: Path, name: str):
    path = write(tmp_path / "a.safetensors", WRONG[name])
    with pytest.raises((SafetensorError, OverflowError)), safe_open(str(path), "pt"):  # the library would refuse it, later
        pass
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        read_header(path)


def test_bytes_behind_the_last_tensor_are_refused_and_a_right_file_is_not(tmp_path: Path):
    assert set(read_header(write(tmp_path / "a.safetensors", TWO))) == {"a", "b"}
    empty = {"e": entry([0, 3], [8, 8]), **TWO}
    assert len(read_header(write(tmp_path / "b.safetensors", empty))) == 3
    with pytest.raises(ModelError, match="the place of b"):
        read_header(write(tmp_path / "c.safetensors", TWO, bytes(20)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_is_found_in_every_format(tmp_path: Path, dtype: torch.dtype, value: float):
    path = tmp_path / "lora.safetensors"
    weights = {
        "whole": torch.tensor([1]),
        "fine": torch.full((7,), torch.finfo(dtype).max, dtype=dtype),
        "bad": torch.ones(5, 3, dtype=dtype),
    }
    save_file(weights, path)
    require_finite(path)
    weights["bad"][4, 2] = value
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"lora\.safetensors holds values that are not finite, the first in bad"):
        require_finite(path)


@pytest.mark.parametrize("option", ["network_weights", "base_weights"])
def test_check_names_the_file_to_begin_from_whose_values_are_no_numbers(tmp_path: Path, option: str):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.full((4, 4), float("nan"))}, path)
    value = str(path) if option == "network_weights" else [str(path)]
    config = small_config(tmp_path, **{f"network__{option}": value})
    problems = find_problems(config, StandaloneHost(tmp_path))
    assert [problem.path for problem in problems if "not finite" in problem.text() and "lora.safetensors" in problem.text()] == [
        f"network.{option}"
    ]
