"""Latents on disk, shared by runs and processes: for each shape one file of arrays that is mapped, and one of their keys.

Files `4x64x64.keys` (a head that names the file of arrays, then one entry for each array, in order) and
`4x64x64-GENERATION.latents` (the arrays alone, one behind the other). An array is written first, then its key, both under a lock
that the system takes back from a killed process: what was written without its key is written over by the next. A file of arrays is
never changed where somebody reads it nor put in the place of another: cleared ones come back under another name.
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

from lora_trainer.files import locked

Shape = tuple[int, ...]
LATENTS, TEXTS = "latents", "texts"
"""Folders of stores in a host's cache folder: of encoded pictures, and of encoded captions."""
MAGIC = b"LTKEYS1\n"
HEAD = struct.Struct("<8s16s8x")
ENTRY = struct.Struct("<32sII")
"""Key, checksum of the array, checksum of these two."""


class LatentStore:
    """Arrays float32 by shape and 32-byte key in `folder`. Not to be shared between threads. OSError when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shelves: dict[Shape, _Shelf] = {}

    def has(self, shape: Shape, key: bytes) -> bool:
        """Whether the array was there when this shape was last looked at."""
        return key in self._shelf(shape).places

    def look_again(self, shape: Shape) -> None:
        """Takes note of what other processes have written meanwhile; cheap where they have not."""
        self._shelf(shape).refresh()

    def get(self, shape: Shape, key: bytes) -> NDArray[np.float32] | None:
        """A copy of the array; None when it is not there or damaged (then `has` is False from now on)."""
        return self._shelf(shape).read(key)

    def put(self, key: bytes, array: NDArray[np.float32]) -> None:
        """Writes the array unless somebody else has done so. Raises OSError when the disk is full or may not be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            self._shelf(array.shape).append(key, array)

    def close(self) -> None:
        """Lets go of the mapped files."""
        for shelf in self._shelves.values():
            shelf.close()
        self._shelves.clear()

    def _shelf(self, shape: Shape) -> _Shelf:
        if shape not in self._shelves:
            self._shelves[shape] = _Shelf(self.folder, shape)
            self._shelves[shape].refresh()
        return self._shelves[shape]


@attrs.define(eq=False)
class _Shelf:
    """The arrays of one shape. `places`: key -> (place in the file, checksum)."""

    folder: Path
    shape: Shape
    places: dict[bytes, tuple[int, int]] = attrs.field(factory=dict)
    _generation: str = ""
    _entries: int = 0
    _seen: tuple[int, int, int] = (0, 0, 0)
    _mapped: mmap.mmap | None = None
    _checked: set[bytes] = attrs.field(factory=set)

    @property
    def _keys_file(self) -> Path:
        return self.folder / f"{'x'.join(map(str, self.shape))}.keys"

    @property
    def _arrays_file(self) -> Path:
        return self.folder / f"{self._keys_file.stem}-{self._generation}.latents"

    @property
    def _bytes(self) -> int:
        return int(np.prod(self.shape)) * 4

    def refresh(self) -> None:
        try:
            state = self._keys_file.stat()
        except OSError:
            self._forget("")
            return
        now = (state.st_size, state.st_mtime_ns, state.st_ino)
        if now == self._seen:
            return
        with self._keys_file.open("rb") as file:
            head = file.read(HEAD.size)
            generation = _generation_of(head)
            if generation != self._generation or not generation:
                self._forget(generation)
            file.seek(HEAD.size + self._entries * ENTRY.size)
            self._take(file.read() if generation else b"")
        self._seen = now

    def read(self, key: bytes) -> NDArray[np.float32] | None:
        if key not in self.places:
            return None
        place, checksum = self.places[key]
        begin, end = place * self._bytes, (place + 1) * self._bytes
        mapped = self._map(end)
        if mapped is None:
            del self.places[key]
            return None
        packed = mapped[begin:end]
        if key not in self._checked:
            if zlib.crc32(packed) != checksum:
                del self.places[key]
                return None
            self._checked.add(key)
        return np.frombuffer(bytearray(packed), np.float32).reshape(self.shape)

    def append(self, key: bytes, array: NDArray[np.float32]) -> None:
        self.refresh()
        if key in self.places:
            return
        if not self._generation:
            self._begin()
        packed = np.ascontiguousarray(array, dtype=np.float32).tobytes()
        with self._arrays_file.open("r+b" if self._arrays_file.exists() else "w+b") as file:
            file.seek(self._entries * self._bytes)
            file.write(packed)
        entry = ENTRY.pack(key, zlib.crc32(packed), 0)[: ENTRY.size - 4]
        with self._keys_file.open("r+b") as file:
            file.seek(HEAD.size + self._entries * ENTRY.size)
            file.write(entry + struct.pack("<I", zlib.crc32(entry)))
        self.refresh()

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None

    def _begin(self) -> None:
        generation = secrets.token_hex(8)
        self._keys_file.write_bytes(HEAD.pack(MAGIC, generation.encode("ascii")))
        self._forget(generation)

    def _take(self, data: bytes) -> None:
        whole = len(data) // ENTRY.size * ENTRY.size
        for key, checksum, of_entry in ENTRY.iter_unpack(data[:whole]):
            if zlib.crc32(ENTRY.pack(key, checksum, 0)[: ENTRY.size - 4]) == of_entry:
                self.places[key] = (self._entries, checksum)
                self._checked.discard(key)
            self._entries += 1

    def _forget(self, generation: str) -> None:
        self.close()
        self.places.clear()
        self._checked.clear()
        self._generation, self._entries, self._seen = generation, 0, (0, 0, 0)

    def _map(self, end: int) -> mmap.mmap | None:
        """The mapped arrays up to byte `end` at least; None where the file is not so long."""
        if self._mapped is None or len(self._mapped) < end:
            self.close()
            try:
                with self._arrays_file.open("rb") as file:
                    self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # gone, or empty
                return None
        return self._mapped if len(self._mapped) >= end else None


def _generation_of(head: bytes) -> str:
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        return ""
    return HEAD.unpack(head)[1].decode("ascii", "replace")


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a store."""
    for pattern in ("*.keys", "*.latents"):
        yield from sorted(folder.glob(pattern))


def shelves(folder: Path) -> Iterator[tuple[Shape, int, int]]:
    """(shape, number of arrays, bytes of its files) of each shape in a store, smallest first."""
    found = []
    for keys in folder.glob("*.keys"):
        shape = tuple(int(side) for side in keys.stem.split("x"))
        arrays = [path.stat().st_size for path in folder.glob(f"{keys.stem}-*.latents")]
        count = max(0, keys.stat().st_size - HEAD.size) // ENTRY.size
        found.append((shape, count, keys.stat().st_size + sum(arrays)))
    yield from sorted(found)


def size_of(folder: Path) -> int:
    """Bytes that a store takes."""
    return sum(path.stat().st_size for path in files_of(folder))


def clear(folder: Path) -> tuple[int, int]:
    """Deletes what is stored; (bytes freed, files left because a run has them open, which only Windows keeps anyone from deleting)."""
    if not folder.is_dir():
        return 0, 0
    freed = left = 0
    with locked(folder / "lock"):
        for path in files_of(folder):
            size = path.stat().st_size
            try:
                path.unlink()
            except PermissionError:
                left += 1
            else:
                freed += size
    return freed, left
