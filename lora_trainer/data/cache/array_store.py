"""Arrays on disk, shared by runs and processes: for each shape a memory-mapped file of arrays and a file of their keys.

Files `4x64x64.keys` (a header with the name of the file of arrays, then an entry for each array, in order) and
`4x64x64-GENERATION.latents` (the arrays one after another). An array is written before its key, both under a lock that the system
releases if the process is killed: an array without a key is overwritten by the next. A file of arrays is never changed where it is
read nor replaced: after clearing, a new one gets another name.
"""

from __future__ import annotations

import mmap
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from lora_trainer.files import file_lock

Shape = tuple[int, ...]
LATENTS, TEXTS = "latents", "texts"
"""Folders inside a host's cache folder: of latents, and of encoded captions."""
MAGIC = b"LTKEYS1\n"
HEAD = struct.Struct("<8s16s8x")
ENTRY = struct.Struct("<32sII")
"""Key, CRC-32 of the array, CRC-32 of both."""


class ArrayStore:
    """float32 arrays by shape and 32-byte key in `folder`. Not thread-safe. Raises OSError if the disk fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shape_files: dict[Shape, _ShapeFile] = {}

    def has(self, shape: Shape, key: bytes) -> bool:
        """Whether the array was stored when this shape was last refreshed."""
        return key in self._shape_file(shape).entries

    def refresh(self, shape: Shape) -> None:
        """Reads the keys that other processes have added meanwhile; cheap if there are none."""
        self._shape_file(shape).refresh()

    def get(self, shape: Shape, key: bytes) -> NDArray[np.float32] | None:
        """A copy of the array; None if it is missing or damaged (`has` is False from then on)."""
        return self._shape_file(shape).read(key)

    def put(self, key: bytes, array: NDArray[np.float32]) -> None:
        """Writes the array unless the key exists. Raises OSError if the disk is full or not writable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / "lock"):
            self._shape_file(array.shape).append(key, array)

    def close(self) -> None:
        """Unmaps the files."""
        for file in self._shape_files.values():
            file.close()
        self._shape_files.clear()

    def _shape_file(self, shape: Shape) -> _ShapeFile:
        if shape not in self._shape_files:
            self._shape_files[shape] = _ShapeFile(self.folder, shape)
            self._shape_files[shape].refresh()
        return self._shape_files[shape]


@attrs.define(eq=False)
class _ShapeFile:
    """The arrays of one shape. `entries`: key -> (index in the file, checksum)."""

    folder: Path
    shape: Shape
    entries: dict[bytes, tuple[int, int]] = attrs.field(factory=dict)
    _generation: str = ""
    _count: int = 0
    _last_stat: tuple[int, int, int] = (0, 0, 0)
    _mmap: mmap.mmap | None = None
    _verified: set[bytes] = attrs.field(factory=set)

    @property
    def _keys_file(self) -> Path:
        return self.folder / f"{'x'.join(map(str, self.shape))}.keys"

    @property
    def _arrays_file(self) -> Path:
        return self.folder / f"{self._keys_file.stem}-{self._generation}.latents"

    @property
    def _array_bytes(self) -> int:
        return int(np.prod(self.shape)) * 4

    def refresh(self) -> None:
        try:
            stat = self._keys_file.stat()
        except OSError:
            self._reset("")
            return
        current = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if current == self._last_stat:
            return
        with self._keys_file.open("rb") as file:
            head = file.read(HEAD.size)
            generation = _generation_of(head)
            if generation != self._generation or not generation:
                self._reset(generation)
            file.seek(HEAD.size + self._count * ENTRY.size)
            self._add_entries(file.read() if generation else b"")
        self._last_stat = current

    def read(self, key: bytes) -> NDArray[np.float32] | None:
        if key not in self.entries:
            return None
        index, checksum = self.entries[key]
        start, end = index * self._array_bytes, (index + 1) * self._array_bytes
        arrays = self._map_arrays(end)
        if arrays is None:
            del self.entries[key]
            return None
        packed = arrays[start:end]
        if key not in self._verified:
            if zlib.crc32(packed) != checksum:
                del self.entries[key]
                return None
            self._verified.add(key)
        return np.frombuffer(bytearray(packed), np.float32).reshape(self.shape)

    def append(self, key: bytes, array: NDArray[np.float32]) -> None:
        self.refresh()
        if key in self.entries:
            return
        if not self._generation:
            self._create()
        packed = np.ascontiguousarray(array, dtype=np.float32).tobytes()
        with self._arrays_file.open("r+b" if self._arrays_file.exists() else "w+b") as file:
            file.seek(self._count * self._array_bytes)
            file.write(packed)
        entry = ENTRY.pack(key, zlib.crc32(packed), 0)[: ENTRY.size - 4]
        with self._keys_file.open("r+b") as file:
            file.seek(HEAD.size + self._count * ENTRY.size)
            file.write(entry + struct.pack("<I", zlib.crc32(entry)))
        self.refresh()

    def close(self) -> None:
        if self._mmap is not None:
            self._mmap.close()
            self._mmap = None

    def _create(self) -> None:
        generation = secrets.token_hex(8)
        self._keys_file.write_bytes(HEAD.pack(MAGIC, generation.encode("ascii")))
        self._reset(generation)

    def _add_entries(self, data: bytes) -> None:
        complete = len(data) // ENTRY.size * ENTRY.size
        for key, checksum, entry_checksum in ENTRY.iter_unpack(data[:complete]):
            if zlib.crc32(ENTRY.pack(key, checksum, 0)[: ENTRY.size - 4]) == entry_checksum:
                self.entries[key] = (self._count, checksum)
                self._verified.discard(key)
            self._count += 1

    def _reset(self, generation: str) -> None:
        self.close()
        self.entries.clear()
        self._verified.clear()
        self._generation, self._count, self._last_stat = generation, 0, (0, 0, 0)

    def _map_arrays(self, end: int) -> mmap.mmap | None:
        """The mapped arrays up to byte `end` at least; None if the file is shorter."""
        if self._mmap is None or len(self._mmap) < end:
            self.close()
            try:
                with self._arrays_file.open("rb") as file:
                    self._mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # gone, or empty
                return None
        return self._mmap if len(self._mmap) >= end else None


def _generation_of(head: bytes) -> str:
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        return ""
    return HEAD.unpack(head)[1].decode("ascii", "replace")


def store_files(folder: Path) -> Iterator[Path]:
    """The files of a store."""
    for pattern in ("*.keys", "*.latents"):
        yield from sorted(folder.glob(pattern))


def shape_statistics(folder: Path) -> Iterator[tuple[Shape, int, int]]:
    """(shape, number of arrays, bytes on disk) of each shape in a store, smallest first."""
    statistics = []
    for keys in folder.glob("*.keys"):
        shape = tuple(int(side) for side in keys.stem.split("x"))
        arrays = [path.stat().st_size for path in folder.glob(f"{keys.stem}-*.latents")]
        count = max(0, keys.stat().st_size - HEAD.size) // ENTRY.size
        statistics.append((shape, count, keys.stat().st_size + sum(arrays)))
    yield from sorted(statistics)


def store_size(folder: Path) -> int:
    """Bytes on disk of a store."""
    return sum(path.stat().st_size for path in store_files(folder))


def clear(folder: Path) -> tuple[int, int]:
    """Deletes all arrays. Returns bytes freed and the number of files that could not be deleted because a run uses them (Windows)."""
    if not folder.is_dir():
        return 0, 0
    freed = in_use = 0
    with file_lock(folder / "lock"):
        for path in store_files(folder):
            size = path.stat().st_size
            try:
                path.unlink()
            except PermissionError:
                in_use += 1
            else:
                freed += size
    return freed, in_use
