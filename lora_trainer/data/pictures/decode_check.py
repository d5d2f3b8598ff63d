"""The closer look that decodes each picture: damaged behind the header, really transparent, nearly the same as another."""

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

from lora_trainer.data.pictures.image_header import UNREADABLE, has_alpha, why_unreadable
from lora_trainer.data.pictures.images import opened_small
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.file_hashes import FileHashes, stamp_of
from lora_trainer.messages import Message, say

GRID = 16
NEAR_BITS = 16
"""Of the 256 comparisons between neighbouring cells, how many may differ between copies."""
NEAR_COLOUR = 0.06
"""Mean difference of the cells' colours, as a share of the picture's own contrast, up to which two pictures are copies."""
FLAT = 2
"""Neighbouring cells count as different in brightness above this, so that noise on flat ground says nothing."""

AT_ONCE = 4
"""Pictures decoded at the same time, where nobody wants to see how far it is."""
OPAQUE, SEE_THROUGH = b"opaque", b"see-through"
"""What is kept of a picture that was found whole."""


@attrs.frozen(eq=False)
class Look:
    """What decoding showed: why it failed (None: it did not), whether it is opaque, and the picture in 16 x 16 cells."""

    reason: Message | None
    opaque: bool = True
    cells: NDArray[np.float32] | None = None


def check_decodes(record: ImageRecord) -> ImageRecord:
    """The record after its picture was decoded: "broken" where that fails, without "transparent" where it is opaque all over."""
    if not record.usable:
        return record
    seen = _look(record.path)
    if seen.reason is not None:
        return attrs.evolve(record, usable=False, notes=("broken",), reason=seen.reason)
    return _without_transparent(record) if seen.opaque else record


def check_all(records: Sequence[ImageRecord], kept_in: Path | None = None) -> tuple[ImageRecord, ...]:
    """Each record verified, in order, several at once.

    With `kept_in` a picture that was found whole is not decoded again by a later process while its file is untouched.
    """
    whole = FileHashes(kept_in, "whole.sqlite")
    whole.look_up(record.path for record in records if record.usable)
    found = [_known(record, whole) if record.usable else record for record in records]
    unknown = [number for number, record in enumerate(found) if record is None]
    with ThreadPoolExecutor(AT_ONCE, "lora-trainer-look") as pool:
        for number, record in zip(unknown, pool.map(lambda number: _seen_now(records[number], whole), unknown), strict=True):
            found[number] = record
    whole.save()
    return tuple(record for record in found if record is not None)


def _known(record: ImageRecord, whole: FileHashes) -> ImageRecord | None:
    """The record as an earlier look left it; None where the file was never found whole, or was touched since."""
    with suppress(OSError):
        kept = whole.known(record.path, stamp_of(record.path))
        if kept is not None:
            return _without_transparent(record) if kept == OPAQUE else record
    return None


def _seen_now(record: ImageRecord, whole: FileHashes) -> ImageRecord:
    try:
        stamp = stamp_of(record.path)
    except OSError:
        return check_decodes(record)
    found = check_decodes(record)
    if found.usable:
        whole.remember(record.path, stamp, OPAQUE if _look(record.path).opaque else SEE_THROUGH)
    return found


def _without_transparent(record: ImageRecord) -> ImageRecord:
    if "transparent" not in record.notes:
        return record
    return attrs.evolve(record, notes=tuple(note for note in record.notes if note != "transparent"))


def look_closer(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Each record verified, in order; one that is nearly the same as an earlier one has the note "copy" and names it.

    Yields while it works, so that a caller can show how far it is, and stop. A file that was seen before is not decoded again.
    """
    signs = bytearray()
    seen: list[tuple[ImageRecord, NDArray[np.float32]]] = []
    for record in records:
        record = check_decodes(record)
        cells = _look(record.path).cells if record.usable else None
        if cells is None:
            yield record
            continue
        sign = _sign(cells)
        if (near := _nearest(sign, cells, signs, seen)) is not None:
            reason = say("Nearly the same picture as {other}.", other=near.key)
            record = attrs.evolve(record, notes=(*(note for note in record.notes if note != "copy"), "copy"), reason=reason)
        signs += sign.tobytes()
        seen.append((record, cells))
        yield record


def _look(path: Path) -> Look:
    try:
        state = path.stat()
    except OSError as error:
        return Look(why_unreadable(error))
    return _looked(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=20_000)
def _looked(path: Path, _changed: int, _size: int) -> Look:
    try:
        opaque = _opaque(path)
        small = opened_small(path, GRID * 8)
    except DatasetError as error:
        return Look(error.problems[0].message.values["why"])
    except UNREADABLE as error:
        return Look(why_unreadable(error))
    return Look(None, opaque, np.asarray(small.resize((GRID + 1, GRID), Image.Resampling.BOX), dtype=np.float32))


def _opaque(path: Path) -> bool:
    with Image.open(path) as image:
        if not has_alpha(image):
            return True
        return bool(image.convert("RGBA").getchannel("A").getextrema()[0] == 255)


def _sign(cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Difference hash: whether each cell is brighter than its left neighbour, as 32 bytes."""
    grey = cells.mean(axis=2)
    return np.packbits(grey[:, 1:] > grey[:, :-1] + FLAT)


def _nearest(
    sign: NDArray[np.uint8], cells: NDArray[np.float32], signs: bytearray, seen: Sequence[tuple[ImageRecord, NDArray[np.float32]]]
) -> ImageRecord | None:
    if not signs:
        return None
    distance = np.unpackbits(np.frombuffer(bytes(signs), np.uint8).reshape(-1, sign.size) ^ sign, axis=1).sum(axis=1)
    for place in np.flatnonzero(distance <= NEAR_BITS):
        record, other = seen[int(place)]
        contrast = min(float(cells.std()), float(other.std())) + 1.0
        if float(np.abs(other - cells).mean()) <= NEAR_COLOUR * contrast:
            return record
    return None
