"""Files and bodies in which one value is of a wrong kind: each is read or refused with a remedy, never by another exception."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer.api.scan_cache import ScanCache
from lora_trainer.api.threads import Workers
from lora_trainer.config.build import build, to_mapping
from lora_trainer.config.importing import import_metadata
from lora_trainer.config.prompt_files import rows_from_file
from lora_trainer.data.sources.metadata_json import read_metadata
from lora_trainer.errors import TrainerError
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.files.tensor_file import read_header
from lora_trainer.network_tools.info import info
from lora_trainer.network_tools.verify import verify
from tests.nested import with_value

WRONG = (None, 5, -1, 2.5, 10**18, 1e308, True, "x", "", "9" * 5000, [], {}, [[1]], ["x"], [{"a": 1}], {"a": {"b": 1}})
"""No kind of value is left out that JSON can hold."""


def mutations(document: Any, values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """(where and what, document) with one value replaced, for every value and every wrong one."""
    for place in places(document):
        for value in values:
            yield f"{place}: {str(value)[:20]!r}", with_value(document, place, value)


def places(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in inner:
        yield from places(value, (*place, key))


def failures(document: Any, read: Callable[[Any], Any], values: tuple[Any, ...] = WRONG) -> list[str]:
    """What was neither read nor refused with a remedy."""
    wrong = []
    for name, mutated in mutations(document, values):
        try:
            read(mutated)
        except TrainerError as error:
            if not all(problem.message.text() and problem.fix.text() for problem in error.problems):
                wrong.append(f"{name}: no remedy")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
    return wrong


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    return folder


def scan(values: dict[str, Any]) -> None:
    ScanCache(Workers()).scan(build({"data": values}))


def test_a_config(pictures):
    for section, options in to_mapping(build({"data": {"train_data_dir": str(pictures)}})).items():
        assert failures(options, lambda values, section=section: build({section: values}), ("9" * 5000, [{}], -1)) == []


def test_a_metadata_file(pictures, tmp_path):
    file = tmp_path / "m.json"

    def read(document):
        file.write_text(json.dumps(document), encoding="utf-8")
        read_metadata(file, pictures, ",", "data.in_json")
        scan({"in_json": str(file), "train_data_dir": str(pictures)})

    assert failures({"0": {"caption": "a", "tags": ["b"], "train_resolution": [64, 64]}, "1.png": "a"}, read) == []
    assert failures({"9" * 5000: {"caption": "a"}, str(pictures / "0.png"): {}}, read) == []
    assert failures([{"file_name": "0.png", "text": "a"}, {"image": "1.png"}], read) == []


def test_a_dataset_file(pictures, tmp_path):
    file = tmp_path / "d.json"
    subset = {"image_dir": str(pictures), "num_repeats": 1, "is_reg": False}
    document = {"general": {"resolution": 64}, "datasets": [{"batch_size": 2, "subsets": [subset]}]}

    def read(document):
        file.write_text(json.dumps(document), encoding="utf-8")
        scan({"dataset_config": str(file)})

    assert failures(document, read) == []


def test_a_prompt_file():
    def read(document):
        for row in rows_from_file(json.dumps(document), "p.json"):
            row.to_line()

    assert failures([{"prompt": "a", "width": 64, "seed": 1, "scale": 7.5}, "b --w 64"], read) == []


def write_safetensors(path: Path, header: Any, size: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def lora_header() -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {"__metadata__": {"ss_network_dim": "4", "ss_tag_frequency": '{"a": {"b": 1}}'}}
    position = 0
    for key, shape in (("lora_down.weight", [4, 8]), ("lora_up.weight", [8, 4]), ("alpha", [])):
        size = 2 * (32 if shape else 1)
        place = [position, position + size]
        header[f"lora_unet_down_blocks_0_attentions_0_proj_in.{key}"] = {"dtype": "F16", "shape": shape, "data_offsets": place}
        position += size
    return header, position


def test_the_header_of_a_network(tmp_path):
    file = tmp_path / "l.safetensors"
    header, size = lora_header()

    def read(document):
        write_safetensors(file, document, size)
        info(file)
        verify(file).to_json("en")

    assert failures(header, read) == []


def test_the_metadata_of_a_network():
    texts = {
        "ss_network_args": '{"conv_dim": "4"}',
        "ss_bucket_info": '{"buckets": {"0": {"resolution": [64, 64], "count": 1}}}',
        "ss_datasets": '[{"resolution": [64, 64]}]',
        "ss_tag_frequency": '{"a": {"b": 1}}',
        "ss_resolution": "(64, 64)",
        "ss_learning_rate": "1e-4",
        "ss_network_dim": "4",
    }
    wrong = []
    for key in texts:
        wrong += failures(0, lambda value, key=key: import_metadata({**texts, key: json.dumps(value)}))
        wrong += failures(0, lambda value, key=key: import_metadata({**texts, key: str(value)}))
    assert wrong == []


def test_a_name_of_thousands_of_characters_makes_a_header_damaged(tmp_path):
    write_safetensors(tmp_path / "l.safetensors", {".attentions.1." * 100: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, 2)
    with pytest.raises(TrainerError, match="damaged"):
        read_header(tmp_path / "l.safetensors")


DIFFUSERS = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {"attention_head_dim": 8, "sample_size": 64, "cross_attention_dim": 768},
    "unet/diffusion_pytorch_model.safetensors.index.json": {"weight_map": {"conv_in.weight": "x.safetensors"}},
    "scheduler/scheduler_config.json": {"prediction_type": "epsilon", "rescale_betas_zero_snr": False},
    "vae/config.json": {"norm_num_groups": 32},
    "text_encoder/config.json": {"hidden_act": "quick_gelu", "num_attention_heads": 12},
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_model_folder(tmp_path, name):
    for file, document in DIFFUSERS.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(document), encoding="utf-8")
    for file in ("unet/x.safetensors", "vae/model.safetensors", "text_encoder/model.safetensors"):
        write_safetensors(tmp_path / file, {"conv_in.weight": {"dtype": "F16", "shape": [4, 4], "data_offsets": [0, 32]}}, 32)

    def read(document):
        (tmp_path / name).write_text(json.dumps(document), encoding="utf-8")
        inspect(tmp_path)

    assert failures(DIFFUSERS[name], read) == []
