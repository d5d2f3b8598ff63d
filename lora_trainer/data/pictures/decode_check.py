"""Checks that decode each picture: damaged data, real transparency, near copies of another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_trainer.data.pictures.image_header import UNREADABLE, has_alpha, unreadable_reason
from lora_trainer.data.pictures.images import open_small
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.file_hashes import FileHashes, stamp_of
from lora_trainer.files import open_regular
from lora_trainer.messages import Message, say

GRID = 16
MAX_HASH_DISTANCE = 16
"""Bits of the 256-bit difference hash that may differ between copies."""
MAX_COLOUR_DIFFERENCE = 0.06
"""Largest mean difference of the cells' colours between copies, relative to the pictures' contrast."""
MIN_STEP = 2
"""Brightness step that counts as a difference between neighbouring cells, so that noise on flat areas does not."""

WORKERS = 4
"""Threads of `check_all`."""
OPAQUE, TRANSPARENT = b"opaque", b"see-through"
"""Stored values of a picture that decodes completely."""


@attrs.frozen(eq=False)
class DecodeResult:
    """The reason of a failure (None: it decodes), whether the picture is opaque, and its mean colours in [16, 17, 3] cells."""

    reason: Message | None
    opaque: bool = True
    cells: NDArray[np.float32] | None = None


def check_decodes(record: ImageRecord) -> ImageRecord:
    """Decodes the picture: the record is "broken" if that fails, and loses "transparent" if the picture is opaque."""
    if not record.usable:
        return record
    result = _decode(record.path)
    if result.reason is not None:
        return attrs.evolve(record, usable=False, notes=("broken",), reason=result.reason)
    return _without_transparent(record) if result.opaque else record


def check_all(records: Sequence[ImageRecord], kept_in: Path | None = None) -> tuple[ImageRecord, ...]:
    """Runs check_decodes on all records, several at once; keeps their order.

    With `kept_in` (a folder) later processes do not decode again what decoded before and has not changed.
    """
    hashes = FileHashes(kept_in, "whole.sqlite")
    hashes.preload(record.path for record in records if record.usable)
    checked = [_checked_before(record, hashes) if record.usable else record for record in records]
    unknown = [index for index, record in enumerate(checked) if record is None]
    with ThreadPoolExecutor(WORKERS, "lora-trainer-look") as pool:
        for index, record in zip(unknown, pool.map(lambda index: _check_and_remember(records[index], hashes), unknown), strict=True):
            checked[index] = record
    hashes.save()
    return tuple(record for record in checked if record is not None)


def _checked_before(record: ImageRecord, hashes: FileHashes) -> ImageRecord | None:
    """The record by an earlier check; None if the file never decoded completely or has changed since."""
    with suppress(OSError):
        alpha = hashes.get(record.path, stamp_of(record.path))
        if alpha is not None:
            return _without_transparent(record) if alpha == OPAQUE else record
    return None


def _check_and_remember(record: ImageRecord, hashes: FileHashes) -> ImageRecord:
    try:
        stamp = stamp_of(record.path)
    except OSError:
        return check_decodes(record)
    checked = check_decodes(record)
    if checked.usable:
        hashes.put(record.path, stamp, OPAQUE if _decode(record.path).opaque else TRANSPARENT)
    return checked


def _without_transparent(record: ImageRecord) -> ImageRecord:
    if "transparent" not in record.notes:
        return record
    return attrs.evolve(record, notes=tuple(note for note in record.notes if note != "transparent"))


def check_and_mark_copies(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Runs check_decodes on each record; a near copy of an earlier one gets the note "copy" and a reason that names it.

    A generator, so that callers can show progress and stop. Unchanged files are not decoded again.
    """
    hashes = bytearray()
    originals: list[tuple[ImageRecord, NDArray[np.float32]]] = []
    for record in records:
        record = check_decodes(record)
        cells = _decode(record.path).cells if record.usable else None
        if cells is None:
            yield record
            continue
        image_hash = _difference_hash(cells)
        if (original := _find_original(image_hash, cells, hashes, originals)) is not None:
            reason = say("Nearly the same picture as {other}.", other=original.key)
            record = attrs.evolve(record, notes=(*(note for note in record.notes if note != "copy"), "copy"), reason=reason)
        hashes += image_hash.tobytes()
        originals.append((record, cells))
        yield record


def _decode(path: Path) -> DecodeResult:
    try:
        stat = path.stat()
    except OSError as error:
        return DecodeResult(unreadable_reason(error))
    return _decode_cached(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=20_000)
def _decode_cached(path: Path, _mtime: int, _size: int) -> DecodeResult:
    try:
        opaque = _is_opaque(path)
        small = open_small(path, GRID * 8)
    except DatasetError as error:
        return DecodeResult(error.problems[0].message.values["why"])
    except UNREADABLE as error:
        return DecodeResult(unreadable_reason(error))
    return DecodeResult(None, opaque, np.asarray(small.resize((GRID + 1, GRID), Image.Resampling.BOX), dtype=np.float32))


def _is_opaque(path: Path) -> bool:
    with open_regular(path) as file, Image.open(file) as image:
        if not has_alpha(image):
            return True
        return bool(image.convert("RGBA").getchannel("A").getextrema()[0] == 255)


def _difference_hash(cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Difference hash (dHash), 32 bytes: whether each cell is brighter than its left neighbour."""
    grey = cells.mean(axis=2)
    return np.packbits(grey[:, 1:] > grey[:, :-1] + MIN_STEP)


def _find_original(
    image_hash: NDArray[np.uint8],
    cells: NDArray[np.float32],
    hashes: bytearray,
    originals: Sequence[tuple[ImageRecord, NDArray[np.float32]]],
) -> ImageRecord | None:
    if not hashes:
        return None
    distance = np.unpackbits(np.frombuffer(bytes(hashes), np.uint8).reshape(-1, image_hash.size) ^ image_hash, axis=1).sum(axis=1)
    for index in np.flatnonzero(distance <= MAX_HASH_DISTANCE):
        record, other = originals[int(index)]
        contrast = min(float(cells.std()), float(other.std())) + 1.0
        if float(np.abs(other - cells).mean()) <= MAX_COLOUR_DIFFERENCE * contrast:
            return record
    return None
