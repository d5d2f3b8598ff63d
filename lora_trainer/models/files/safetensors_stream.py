"""Reads and writes safetensors tensor by tensor, so that checkpoints of many gigabytes never are in memory whole."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.files import atomic_writer
from lora_trainer.models.files import pickled
from lora_trainer.models.files.tensor_file import TensorInfo, is_pickle, open_safetensors

if TYPE_CHECKING:
    from torch import Tensor

DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16"}
TORCH_DTYPES |= {"I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""dtype in safetensors' words -> torch's."""


@contextmanager
def open_tensors(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """Yields a function from a name to its tensor, which is mapped from the file only then. Raises ModelError."""
    if is_pickle(path):
        yield pickled.tensors(path, lambda name: True).__getitem__
        return
    with open_safetensors(path) as file:
        yield file.get_tensor


def write_streamed(path: Path, entries: Mapping[str, TensorInfo], tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]) -> str:
    """Writes a safetensors file and returns its sha256 in hex; `tensor_of` is called once for each name, and its tensor freed after that.

    `entries`: dtype and shape of each tensor. `path` gets the complete file or stays as it was. Raises TrainerError where it cannot be
    written.
    """
    order = sorted(entries, key=lambda name: (-DTYPE_BYTES[entries[name].dtype], name))
    header = _header(order, entries, metadata)
    digest = hashlib.sha256(header)
    with atomic_writer(path) as file:
        file.write(header)
        for name in order:
            block = _bytes(tensor_of(name), entries[name], name)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _header(order: list[str], entries: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        entry = entries[name]
        end = offset + entry.count * DTYPE_BYTES[entry.dtype]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor, entry: TensorInfo, name: str) -> memoryview:
    import torch

    if tuple(tensor.shape) != entry.shape:
        raise AssertionError(f"{name}: {tuple(tensor.shape)} instead of {entry.shape}")
    converted = tensor.detach().to(device="cpu", dtype=getattr(torch, TORCH_DTYPES[entry.dtype])).contiguous()
    return memoryview(converted.reshape(-1).view(torch.uint8).numpy())
