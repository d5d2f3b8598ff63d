"""Rank and alpha of each layer of a network's file in sd-scripts' names, from its header and its alphas (no torch)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from lora_trainer.files import open_regular
from lora_trainer.models.files.tensor_file import read_header

RANK_SUFFIXES = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Suffixes of the tensors whose first side is the rank."""
FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B", "BOOL": "<?"}


@attrs.frozen
class FileRanks:
    """The layers of a file, and rank and alpha of those whose kind has a rank."""

    names: frozenset[str]
    ranks: Mapping[str, tuple[int, float]]


def file_ranks(path: Path) -> FileRanks:
    """The ranks of a file's layers; an alpha that is missing is the rank. Raises ModelError for a file that cannot be read."""
    header = read_header(path)
    layers: dict[str, dict[str, Any]] = {}
    for key, entry in header.items():
        if key != "__metadata__":
            name, _, suffix = key.partition(".")
            layers.setdefault(name, {})[suffix] = entry
    ranks = {}
    with open_regular(path) as file:
        start = 8 + int(struct.unpack("<Q", file.read(8))[0])
        for name, entries in layers.items():
            suffix = next((suffix for suffix in RANK_SUFFIXES if suffix in entries), "")
            if suffix and (rank := int(entries[suffix]["shape"][0])):
                ranks[name] = (rank, _number(file, start, entries["alpha"]) if "alpha" in entries else float(rank))
    return FileRanks(frozenset(layers), ranks)


def _number(file: BinaryIO, start: int, entry: Mapping[str, Any]) -> float:
    begin, end = entry["data_offsets"]
    file.seek(start + begin)
    content = file.read(end - begin)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + content)[0])
    return float(struct.unpack(FORMATS[entry["dtype"]], content)[0])
