"""Safetensors written tensor by tensor: a checkpoint of many gigabytes passes through, one layer at a time, into a new file."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.files import writing
from lora_trainer.models.files import pickled
from lora_trainer.models.files.tensor_file import Entry, is_pickle, read_header

if TYPE_CHECKING:
    from torch import Tensor

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16"}
NAMES |= {"I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Number formats in safetensors' words -> torch's."""


def dtype_word(tensor: Tensor) -> str:
    """A tensor's number format in safetensors' words."""
    return next(word for word, name in NAMES.items() if name == str(tensor.dtype).removeprefix("torch."))


@contextmanager
def opened(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """From a name to its tensor, mapped from the file when it is asked for. Raises ModelError."""
    if is_pickle(path):
        yield pickled.tensors(path, lambda name: True).__getitem__
        return
    from safetensors import safe_open

    read_header(path)
    with safe_open(str(path), framework="pt") as file:
        yield file.get_tensor


def write_streamed(path: Path, entries: Mapping[str, Entry], tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]) -> str:
    """Writes a safetensors file in one go and returns its sha256; each tensor is asked for once, written, and let go.

    Entries say beforehand what each will be. `path` gets the whole file or stays as it was. Raises TrainerError when it cannot be written.
    """
    order = sorted(entries, key=lambda name: (-BYTES[entries[name].dtype], name))
    head = _header(order, entries, metadata)
    digest = hashlib.sha256(head)
    with writing(path) as file:
        file.write(head)
        for name in order:
            block = _bytes(tensor_of(name), entries[name], name)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _header(order: list[str], entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    said: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        entry = entries[name]
        end = offset + entry.count * BYTES[entry.dtype]
        said[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor, entry: Entry, name: str) -> memoryview:
    import torch

    if tuple(tensor.shape) != entry.shape:
        raise AssertionError(f"{name}: {tuple(tensor.shape)} instead of {entry.shape}")
    wanted = tensor.detach().to(device="cpu", dtype=getattr(torch, NAMES[entry.dtype])).contiguous()
    return memoryview(wanted.reshape(-1).view(torch.uint8).numpy())
