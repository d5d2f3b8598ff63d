"""Reads torch's pickle files (.ckpt, .pt, .bin) without executing anything in them.

A pickle is a list of instructions, among them "call this with that". Here only a few names are known, and each of them stands for
something of ours that makes a description of a tensor: neither torch's functions nor anybody else's are ever called. Everything
else is refused by its name. `torch.load(weights_only=True)` would run code of a prepared file in torch before 2.6.
"""

from __future__ import annotations

import io
import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

INSTRUCTIONS_LIMIT = 64 << 20
SAFE_FILE = "Use the model's .safetensors file."
FORMATS = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
HARMLESS = frozenset(
    {
        ("torch", "device"),
        ("torch", "dtype"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("argparse", "Namespace"),
    }
)
"""Objects that training programs store beside the weights; ignored, as is everything of pytorch_lightning."""


@attrs.frozen
class StoredTensor:
    """A tensor's description in the file: dtype, shape, strides, index of the first value, archive entry of its storage."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    entry: str
    values: int
    """Number of values in the storage."""


class Forbidden(pickle.UnpicklingError):
    """The file would call something that a model does not need."""


def read(path: Path) -> dict[str, StoredTensor]:
    """Name -> description of each tensor. Raises ModelError if the file is damaged or would execute code."""
    with _archive(path) as archive:
        return _read_described(path, archive)


def is_tensor_list(path: Path) -> bool:
    """Whether the file holds a bare list of tensors, which have no names."""
    try:
        with _archive(path) as archive:
            loaded = _load(path, archive)
    except ModelError:
        return False
    return isinstance(loaded, list) and bool(loaded) and all(isinstance(entry, StoredTensor) for entry in loaded)


def tensors(path: Path, select: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The selected tensors of a torch file, memory-mapped. Raises ModelError."""
    import torch

    dtypes = {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F64": torch.float64,
        "BOOL": torch.bool,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
    }
    mapped_tensors: dict[str, Tensor] = {}
    with _archive(path) as archive, open_regular(path) as file:
        described = {name: stored for name, stored in _read_described(path, archive).items() if select(name)}
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # the tensors hold it as long as they live
        for name, stored in described.items():
            dtype = dtypes[stored.dtype]
            if 0 in stored.shape:
                mapped_tensors[name] = torch.empty(stored.shape, dtype=dtype)
                continue
            start = _data_offset(archive.getinfo(stored.entry), mapped)
            storage = torch.frombuffer(mapped, dtype=dtype, count=stored.values, offset=start)
            mapped_tensors[name] = torch.as_strided(storage, stored.shape, stored.strides, stored.first)
    return mapped_tensors


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        with open_regular(path) as file:
            start = file.read(4)
        if start[:2] != b"PK":
            raise ModelError(
                "{path} is a torch file of before 2020, or none at all: its kind cannot be read without running what is in it."
                if start[:1] == b"\x80"
                else "{path} is not a checkpoint.",
                path=str(path),
                fix=SAFE_FILE,
            )
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelError(
            "{path} ends early: it was not downloaded or copied completely.", path=str(path), fix="Get the file again."
        ) from error
    except OSError as error:
        raise ModelError(
            "{path} cannot be read ({reason}).", path=str(path), reason=error.strerror or str(error), fix="Check the file's permissions."
        ) from error


def _read_described(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    try:
        return _state_dict(_load(path, archive))
    except (AttributeError, TypeError) as error:
        raise _damaged(path) from error


def _load(path: Path, archive: zipfile.ZipFile) -> Any:
    """What the file's instructions make, with descriptions for tensors. Raises ModelError."""
    infos = {info.filename: info for info in archive.infolist()}
    script = next((name for name in infos if name.endswith("data.pkl") and name.count("/") <= 1), None)
    if script is None:
        raise ModelError("{path} is not a checkpoint.", path=str(path), fix=SAFE_FILE)
    root = script.removesuffix("data.pkl")
    if infos[script].file_size > INSTRUCTIONS_LIMIT or not _is_uncompressed(infos[script]):
        raise _damaged(path)
    order = infos.get(f"{root}byteorder")
    if order is not None and order.file_size < 16 and archive.read(order) == b"big":
        raise ModelError("{path} was written on another kind of computer (big-endian).", path=str(path), fix=SAFE_FILE)
    try:
        return _RestrictedUnpickler(io.BytesIO(archive.read(script)), root, infos).load()
    except Forbidden as error:
        raise ModelError(
            "{path} would run {name} when it is opened, so it was refused. Nothing of it was run.",
            path=str(path),
            name=str(error),
            fix="Use a .safetensors file of a source that you trust.",
        ) from error
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, AttributeError, TypeError, ValueError, LookupError),
        *(OverflowError, RecursionError, MemoryError, ImportError),
    ) as error:
        raise _damaged(path) from error


def _state_dict(checkpoint: Any) -> dict[str, StoredTensor]:
    inner = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(inner, dict):
        raise TypeError("no tensors by name")
    return {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, StoredTensor)}


def _damaged(path: Path) -> ModelError:
    return ModelError("{path} is damaged, or no checkpoint.", path=str(path), fix=SAFE_FILE)


def _is_uncompressed(info: zipfile.ZipInfo) -> bool:
    """Whether an entry is stored uncompressed: torch never compresses, and compressed data may be far larger than it looks."""
    return info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size and not info.flag_bits & 1


def _data_offset(info: zipfile.ZipInfo, mapped: mmap.mmap) -> int:
    """Offset of an entry's data, after its local header, whose length is not in the central directory."""
    header = mapped[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if len(header) < 30 or start + info.file_size > len(mapped):
        raise ModelError("{path} is damaged, or no checkpoint.", path=info.filename, fix=SAFE_FILE)
    return start


@attrs.frozen
class _Storage:
    """A storage: an archive entry with the data of tensors."""

    dtype: str
    entry: str
    values: int


class _Rebuild:
    """Stands in for torch's `_rebuild_tensor` and `_rebuild_tensor_v2`. Without attributes, so that a pickle can set none."""

    __slots__ = ()

    def __call__(self, storage: Any, first: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
        """The tensor's description. Raises ValueError if it exceeds its storage."""
        numbers = (first, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
            raise ValueError("not a tensor")
        last = first + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        if len(shape) > 8 or (0 not in shape and last >= storage.values):
            raise ValueError("a tensor outside its bytes")
        return StoredTensor(storage.dtype, tuple(shape), tuple(strides), first, storage.entry, storage.values)


class _Parameter:
    """Stands in for torch's `_rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, data: Any, *rest: Any) -> Any:
        """The tensor inside."""
        return data


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows only the names that a model needs."""

    def __init__(self, script: io.BytesIO, root: str, infos: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(script, encoding="utf-8")
        self._root, self._infos = root, infos
        nothing = type("Nothing", (), {"__init__": _ignore_arguments, "__new__": _new, "__setstate__": _ignore_arguments})
        self._names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): _Rebuild(),
            ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
            ("torch._utils", "_rebuild_parameter"): _Parameter(),
            **{("torch", name): kind for name, kind in FORMATS.items()},
            **dict.fromkeys(HARMLESS, nothing),
        }
        self._nothing = nothing

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; nothing is imported. Raises Forbidden for unknown names."""
        stand_in = self._names.get((module, name))
        if stand_in is not None:
            return stand_in
        if module.split(".")[0] == "pytorch_lightning" and name.isidentifier():
            return self._nothing
        raise Forbidden(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of a tensor. Raises ValueError if its entry is missing or too short."""
        kind, dtype, key, _, values = pid
        info = self._infos.get(f"{self._root}data/{key}")
        if kind != "storage" or dtype not in SIZES or type(values) is not int or values < 0 or info is None or not _is_uncompressed(info):
            raise ValueError("not the bytes of a tensor")
        if values * SIZES[dtype] > info.file_size:
            raise ValueError("too few bytes")
        return _Storage(dtype, info.filename, values)


def _ignore_arguments(self: Any, *args: Any, **kwargs: Any) -> None:
    """Accepts any arguments and ignores them."""


def _new(cls: Any, *args: Any, **kwargs: Any) -> Any:
    return object.__new__(cls)
