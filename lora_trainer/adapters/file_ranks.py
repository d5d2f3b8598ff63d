"""Rank and alpha of each layer of a network's file of any program, from its header and its alphas: no other tensor is read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from lora_trainer.adapters.files.checked_network import NetworkFile, open_network
from lora_trainer.adapters.files.network_module import NetworkModule
from lora_trainer.files import open_regular
from lora_trainer.models.files.safetensors_stream import open_tensors
from lora_trainer.models.files.tensor_file import data_start, read_header

FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B", "BOOL": "<?"}


@attrs.frozen
class FileRanks:
    """The layers of a file, and rank and alpha of those whose kind has a rank."""

    names: frozenset[str]
    ranks: Mapping[str, tuple[int, float]]


def file_ranks(path: Path) -> FileRanks:
    """The ranks of a file's layers; an alpha that is said nowhere is the rank. Raises ModelError for a file that is not a network."""
    network = open_network(path)
    header, start = read_header(path), data_start(path)
    with open_regular(path) as file:
        ranks = {
            name: (module.rank, _alpha(network, module, header, file, start)) for name, module in network.modules.items() if module.rank
        }
    return FileRanks(frozenset(network.modules), ranks)


def _alpha(network: NetworkFile, module: NetworkModule, header: Mapping[str, Any], file: BinaryIO, start: int) -> float:
    if "alpha" in module.keys:
        entry = header[module.keys["alpha"]]
        if entry["dtype"] in (*FORMATS, "BF16"):
            return _number(file, start, entry)
        with open_tensors(network.path) as tensor_of:  # an 8-bit float
            return float(tensor_of(module.keys["alpha"]).float())
    return network.declared.alphas.get(module.name, float(module.rank))


def _number(file: BinaryIO, start: int, entry: Mapping[str, Any]) -> float:
    begin, end = entry["data_offsets"]
    file.seek(start + begin)
    content = file.read(end - begin)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + content)[0])
    return float(struct.unpack(FORMATS[entry["dtype"]], content)[0])
