"""Files of tensors: names, dtypes and shapes without loading (no torch), and the tensors, memory-mapped.

Reads safetensors; `.ckpt`, `.pt`, `.pth` and `.bin` by models/files/pickled.py, which executes nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.files import open_regular
from lora_trainer.messages import say
from lora_trainer.models.files import pickled
from lora_trainer.parsing import parse_json

if TYPE_CHECKING:
    from torch import Tensor

HEADER_LIMIT = 32 << 20
"""A real header has some hundred bytes for each of a few thousand tensors, and what a trainer noted."""
MAX_NAME, MAX_SIDES = 1000, 16
"""Characters of a tensor's name, and its dimensions."""
DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
CHOOSE = "Choose a .safetensors or .ckpt checkpoint."
PACKED = say("a checkpoint whose weights are packed in a few bits each (GGUF, nf4): choose the whole one that it was made from")


@attrs.frozen
class TensorInfo:
    """Dtype (safetensors' name, "F16") and shape of a tensor.

    `chunk` and `t` change the shape as a tensor's methods do, so that models/layout.py renames both alike.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def count(self) -> int:
        """Number of values."""
        total = 1
        for side in self.shape:
            total *= side
        return total

    def chunk(self, parts: int) -> list[TensorInfo]:
        """Equal parts along the first dimension."""
        return [TensorInfo(self.dtype, (self.shape[0] // parts, *self.shape[1:]))] * parts

    def t(self) -> TensorInfo:
        """Transposed."""
        return TensorInfo(self.dtype, self.shape[::-1])


@attrs.frozen
class Contents:
    """A file's contents: name -> tensor info, and the header's metadata (empty for pickles)."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def contents(path: Path) -> Contents:
    """The contents of a file of tensors. Raises ModelError if it is missing, damaged, truncated, or would execute code."""
    if is_pickle(path) and path.is_file():
        return Contents({name: TensorInfo(stored.dtype, stored.shape) for name, stored in pickled.read(path).items()}, {})
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    return Contents({name: TensorInfo(str(entry["dtype"]), tuple(entry["shape"])) for name, entry in header.items()}, metadata)


def tensors(path: Path, select: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The selected tensors of a file, memory-mapped. Raises ModelError."""
    if is_pickle(path):
        return pickled.tensors(path, select)
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys() if select(name)}  # noqa: SIM118 - not a dict


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """safetensors' `safe_open`. Raises ModelError for what it refuses, too."""
    from safetensors import SafetensorError, safe_open

    read_header(path)
    try:
        opened = safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError("{path} is not a safetensors file, or it is damaged.", path=str(path), fix=CHOOSE) from error
    with opened as file:
        yield file


def is_pickle(path: Path) -> bool:
    """Whether a file has the suffix of a torch pickle."""
    return path.suffix.lower() in PICKLES


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name -> {"dtype", "shape", "data_offsets"}, and "__metadata__".

    Raises ModelError if the file is missing, not a safetensors file, or truncated.
    """
    if not _exists(path):
        raise ModelError("{path} does not exist.", path=str(path), fix=CHOOSE)
    if path.is_dir():
        raise ModelError("{path} is a folder, not a checkpoint file.", path=str(path), fix=CHOOSE)
    try:
        with open_regular(path) as file:
            start = file.read(8)
            if start.startswith(b"GGUF"):
                raise ModelError("{path} is {kind}.", path=str(path), kind=PACKED, fix=CHOOSE)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT + 1
            if length > HEADER_LIMIT:
                raise ModelError("{path} is not a safetensors file.", path=str(path), fix=CHOOSE)
            header: dict[str, Any] = parse_json(file.read(length).decode("utf-8"))
            if max(map(len, header), default=0) > MAX_NAME:
                raise ValueError(path)
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            ends = [entry["data_offsets"][1] for entry in entries]
            if not all(map(_is_entry, entries)):
                raise ValueError(path)
            _check_metadata(header.get("__metadata__", {}))
    except OSError as error:
        raise ModelError(
            "{path} cannot be read ({reason}).", path=str(path), reason=error.strerror or str(error), fix="Check the file's permissions."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ModelError("{path} is not a safetensors file, or it is damaged.", path=str(path), fix=CHOOSE) from error
    size = path.stat().st_size - 8 - length
    if ends and size < max(ends):
        raise ModelError("{path} ends early: it was not downloaded or copied completely.", path=str(path), fix="Get the file again.")
    if size and (damaged := _misplaced(header, size)):  # a header by itself still tells what the file was
        raise ModelError(
            "{path} is damaged: the place of {name} in the file is not its own, or not of its size.",
            path=str(path),
            name=damaged,
            fix="Get the file again.",
        )
    return header


def _is_entry(entry: Mapping[str, Any]) -> bool:
    """Whether a tensor's entry holds values of the right kinds."""
    numbers = (*entry["shape"], *entry["data_offsets"])
    is_dtype = isinstance(entry["dtype"], str) and DTYPE.fullmatch(entry["dtype"]) is not None
    has_places = len(entry["data_offsets"]) == 2 and len(entry["shape"]) <= MAX_SIDES
    return is_dtype and has_places and all(type(n) is int and n >= 0 for n in numbers)


def data_start(path: Path) -> int:
    """Where the tensors of a safetensors file begin. Raises OSError."""
    with open_regular(path) as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])


def _misplaced(header: Mapping[str, Any], size: int) -> str:
    """The first tensor that does not begin where the one before it ends, or has another size than its shape says; empty if there is none.

    The format allows neither gaps nor overlaps, and nothing behind the last tensor; safetensors itself refuses such files.
    """
    entries = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    position = 0
    for begin, end, name in entries:
        expected = _stored_bytes(header[name])
        if begin != position or end < begin or expected not in (None, end - begin):
            return str(name)
        position = end
    return str(entries[-1][2]) if entries and position != size else ""


def _stored_bytes(entry: Mapping[str, Any]) -> int | None:
    """Bytes of a tensor; None for a dtype that is not known here."""
    bits = re.search(r"(?<![EM])\d+", str(entry["dtype"]))
    if entry["dtype"] == "BOOL":
        return TensorInfo("BOOL", tuple(entry["shape"])).count
    return TensorInfo("", tuple(entry["shape"])).count * int(bits[0]) // 8 if bits else None


def _check_metadata(metadata: Any) -> None:
    """Raises TypeError unless it holds texts by name."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("not metadata")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False
