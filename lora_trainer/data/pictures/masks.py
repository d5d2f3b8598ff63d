"""Which part of a picture is learned: masks beside pictures, in a folder of their own, or in the picture's transparency.

Four habits are read: OneTrainer's NAME-masklabel.png, sd-scripts' conditioning folder (red channel), sd-scripts' alpha mask, and
alpha or folder with a threshold or a least weight (traintrain, ai-toolkit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_trainer.data.pictures.crops import frame_box
from lora_trainer.data.pictures.image_header import upright
from lora_trainer.data.pictures.images import in_8_bit, loaded
from lora_trainer.data.records import ImageRecord, stable
from lora_trainer.data.sources.folders import MASK, is_picture
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

CELL = 8
"""Pixels of a side that make one latent."""
LOOK = 64
NAMED = 3

Rules = Callable[[ImageRecord], "DataConfig"]


def masks_wanted(data: DataConfig) -> bool:
    """Whether any kind of mask is to be used."""
    return bool(data.alpha_mask or data.mask_dir.strip() or data.masks_beside)


def with_masks(records: Sequence[ImageRecord], rules_of: Rules) -> tuple[list[ImageRecord], list[Message]]:
    """The records with `mask_path` or `alpha_mask` set, and how much of them is learned.

    A picture whose mask cannot be read is not used, and says so. Raises DatasetError where masks are asked for and there are none.
    """
    finder = _Finder()
    found = [finder.masked(record, rules_of(record)) if record.usable else record for record in records]
    wanted = [record for record in found if record.usable and not record.validation and masks_wanted(rules_of(record))]
    if not wanted:
        return found, list(_unused(found))
    masked = [record for record in wanted if has_mask(record)]
    if not masked:
        raise _none_found(rules_of(wanted[0]), len(wanted))
    return found, list(_report(wanted, [(record, finder.coverage[record.path]) for record in masked]))


def has_mask(record: ImageRecord) -> bool:
    """Whether the record's picture is learned in part."""
    return record.mask_path is not None or record.alpha_mask


class Masks:
    """Masks in the size of latents, each read once unless its picture is cut elsewhere each time."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], NDArray[np.uint8]] = {}

    def get(self, record: ImageRecord, data: DataConfig, *, flipped: bool, keep: bool = True) -> NDArray[np.float32] | None:
        """Weights float32 [h/8, w/8] from data.mask_min_value to 1; None for a picture that counts whole. Raises DatasetError."""
        if not has_mask(record):
            return None
        name = (record.path, record.mask_path, record.bucket, record.resized, record.crop, record.frame)
        cells = self._kept.get(name)
        if cells is None:
            cells = _cells(record)
            if keep:
                self._kept[name] = cells
        shares = cells.astype(np.float32) / np.float32(255.0)
        if data.mask_threshold:
            shares = (shares > data.mask_threshold).astype(np.float32)
        low = np.float32(data.mask_min_value)
        weights = low + (np.float32(1.0) - low) * shares
        return np.ascontiguousarray(weights[:, ::-1]) if flipped else weights


def _cells(record: ImageRecord) -> NDArray[np.uint8]:
    if record.bucket is None or record.resized is None or record.crop is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.place first")
    left, top, width, height = record.crop
    mask = _shown(record).resize(record.resized, Image.Resampling.BOX).crop((left, top, left + width, top + height))
    values = np.asarray(mask, dtype=np.float32).reshape(height // CELL, CELL, width // CELL, CELL)
    return np.rint(values.mean(axis=(1, 3))).astype(np.uint8)


def _shown(record: ImageRecord) -> Image.Image:
    """The mask as grey picture, upright, of the part that the record shows; in the mask's own size. Raises DatasetError."""
    path = record.mask_path or record.path
    with loaded(path) as image:
        turned = upright(image)
        if record.mask_path is None:
            mask = turned.convert("RGBA").getchannel("A")
        else:
            mask = in_8_bit(turned).convert("RGB").getchannel("R")
    return mask if record.frame is None else mask.crop(frame_box(record.frame, mask.size))


class _Finder:
    """Looks for masks; reads each folder of them once."""

    def __init__(self) -> None:
        self.coverage: dict[Path, float] = {}
        self._folders: dict[str, Mapping[str, Path]] = {}

    def masked(self, record: ImageRecord, data: DataConfig) -> ImageRecord:
        path = record.mask_path
        if path is None and data.mask_dir.strip():
            path = self._in_folder(record, data.mask_dir.strip())
        if path is None and data.masks_beside:
            path = _beside(record.path)
        alpha = path is None and (data.alpha_mask or record.alpha_mask) and "transparent" in record.notes
        record = attrs.evolve(record, mask_path=path, alpha_mask=alpha)
        if not has_mask(record):
            return record
        try:
            small = _shown(record).resize((LOOK, LOOK), Image.Resampling.BOX)
        except DatasetError as error:
            reason = say("Its mask: {why}", why=error.problems[0].message)
            return attrs.evolve(record, usable=False, notes=("broken", *record.notes), reason=reason)
        self.coverage[record.path] = float(np.asarray(small, dtype=np.float32).mean()) / 255.0
        return record

    def _in_folder(self, record: ImageRecord, folder: str) -> Path | None:
        if folder not in self._folders:
            self._folders[folder] = dict(_index(Path(folder)))
        known = self._folders[folder]
        parts = record.key.split("/")
        names = [_stem("/".join(parts[begin:])) for begin in range(len(parts))]
        return next((known[name] for name in names if name in known), None)


def _index(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name without ending, path) of every picture in a folder of masks, under its path inside it and under its own name."""
    if not folder.is_dir():
        raise DatasetError(
            "there is no folder of masks {folder}.", path="data.mask_dir", folder=str(folder), fix="Choose the folder that holds the masks."
        )
    found = sorted(path for path in folder.rglob("*") if is_picture(path.name) and path.is_file())
    for path in found:
        yield _stem(path.name), path
    for path in found:
        yield _stem(path.relative_to(folder).as_posix()), path


def _stem(key: str) -> str:
    name = stable(key).rpartition(".")[0].casefold()
    return name.removesuffix(MASK)


def _beside(picture: Path) -> Path | None:
    beside = picture.with_name(f"{picture.stem}{MASK}.png")
    return beside if beside.is_file() else None


def _none_found(data: DataConfig, count: int) -> DatasetError:
    if data.mask_dir.strip():
        return DatasetError(
            "none of the {count} pictures has a mask in {folder}.",
            path="data.mask_dir",
            count=count,
            folder=data.mask_dir,
            fix="Give the masks the names of the pictures, or leave data.mask_dir empty.",
        )
    if data.masks_beside:
        return DatasetError(
            "none of the {count} pictures has a mask beside it.",
            path="data.masks_beside",
            count=count,
            fix="Put NAME-masklabel.png beside NAME.png, or set data.masks_beside = false.",
        )
    return DatasetError(
        "none of the {count} pictures has transparent parts.",
        path="data.alpha_mask",
        count=count,
        fix="Save the pictures with transparency, or set data.alpha_mask = false.",
    )


def _unused(records: Sequence[ImageRecord]) -> Iterator[Message]:
    beside = [record.key for record in records if record.usable and _beside(record.path)]
    if beside:
        yield say(
            "Masks lie beside {count} pictures and are not used; set data.masks_beside = true to learn only inside them.", count=len(beside)
        )


def _report(wanted: Sequence[ImageRecord], coverage: Sequence[tuple[ImageRecord, float]]) -> Iterator[Message]:
    mean = sum(share for _, share in coverage) / len(coverage)
    yield say(
        "{count} of {all} pictures have masks; on average {share} % of a masked picture is learned.",
        count=len(coverage),
        all=len(wanted),
        share=round(100 * mean, 1),
    )
    empty = [record.key for record, share in coverage if share == 0.0]
    if empty:
        names = ", ".join(empty[:NAMED]) + (" ..." if len(empty) > NAMED else "")
        yield say(
            "Masks that are black all over, so that nothing of the picture is learned ({count}): {names}", count=len(empty), names=names
        )
