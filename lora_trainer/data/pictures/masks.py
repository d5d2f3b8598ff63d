"""Loss masks: beside pictures, in their own folder, or the picture's alpha channel.

Supported: OneTrainer's NAME-masklabel.png, sd-scripts' conditioning folder (red channel), sd-scripts' alpha mask, and alpha or folder
with a threshold or a least weight (traintrain, ai-toolkit).
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
from lora_trainer.data.pictures.images import decoded_image, to_8_bit
from lora_trainer.data.records import ImageRecord, nfc
from lora_trainer.data.sources.folders import MASK_SUFFIX, is_picture
from lora_trainer.errors import DatasetError
from lora_trainer.messages import Message, say

if TYPE_CHECKING:
    from lora_trainer.config.schema import DataConfig

LATENT_PIXELS = 8
"""Pixels per latent cell and side."""
COVERAGE_SIDE = 64
NAMED = 3

DataOptionsOf = Callable[[ImageRecord], "DataConfig"]


def uses_masks(data: DataConfig) -> bool:
    """Whether the options ask for masks."""
    return bool(data.alpha_mask or data.mask_dir.strip() or data.masks_beside)


def assign_masks(records: Sequence[ImageRecord], rules_of: DataOptionsOf) -> tuple[list[ImageRecord], list[Message]]:
    """The records with `mask_path` or `alpha_mask` set, and messages about how much of them is learned.

    A picture whose mask cannot be read is not used, with a reason. Raises DatasetError if the options ask for masks and there are none.
    """
    finder = _MaskFinder()
    assigned = [finder.assign(record, rules_of(record)) if record.usable else record for record in records]
    maskable = [record for record in assigned if record.usable and not record.validation and uses_masks(rules_of(record))]
    if not maskable:
        return assigned, list(_about_unused_masks(assigned))
    masked = [record for record in maskable if has_mask(record)]
    if not masked:
        raise _no_masks_error(rules_of(maskable[0]), len(maskable))
    return assigned, list(_about_coverage(maskable, [(record, finder.coverage[record.path]) for record in masked]))


def has_mask(record: ImageRecord) -> bool:
    """Whether the record has a mask."""
    return record.mask_path is not None or record.alpha_mask


class MaskCache:
    """Masks at the size of latents, each read once."""

    def __init__(self) -> None:
        self._cells: dict[tuple[object, ...], NDArray[np.uint8]] = {}

    def get(self, record: ImageRecord, data: DataConfig, *, flipped: bool, cache: bool = True) -> NDArray[np.float32] | None:
        """Weights float32 [h/8, w/8] in data.mask_min_value..1; None without a mask. `cache` False: random crops. Raises DatasetError."""
        if not has_mask(record):
            return None
        name = (record.path, record.mask_path, record.bucket, record.resized, record.crop, record.frame)
        cells = self._cells.get(name)
        if cells is None:
            cells = _load_mask_cells(record)
            if cache:
                self._cells[name] = cells
        shares = cells.astype(np.float32) / np.float32(255.0)
        if data.mask_threshold:
            shares = (shares > data.mask_threshold).astype(np.float32)
        low = np.float32(data.mask_min_value)
        weights = low + (np.float32(1.0) - low) * shares
        return np.ascontiguousarray(weights[:, ::-1]) if flipped else weights


def _load_mask_cells(record: ImageRecord) -> NDArray[np.uint8]:
    if record.bucket is None or record.resized is None or record.crop is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.assign_buckets first")
    left, top, width, height = record.crop
    mask = _open_mask(record).resize(record.resized, Image.Resampling.BOX).crop((left, top, left + width, top + height))
    values = np.asarray(mask, dtype=np.float32).reshape(height // LATENT_PIXELS, LATENT_PIXELS, width // LATENT_PIXELS, LATENT_PIXELS)
    return np.rint(values.mean(axis=(1, 3))).astype(np.uint8)


def _open_mask(record: ImageRecord) -> Image.Image:
    """The greyscale mask of the record's frame, upright, in the mask's own resolution. Raises DatasetError."""
    path = record.mask_path or record.path
    with decoded_image(path) as image:
        turned = upright(image)
        if record.mask_path is None:
            mask = turned.convert("RGBA").getchannel("A")
        else:
            mask = to_8_bit(turned).convert("RGB").getchannel("R")
    return mask if record.frame is None else mask.crop(frame_box(record.frame, mask.size))


class _MaskFinder:
    """Finds masks; lists each folder of masks once."""

    def __init__(self) -> None:
        self.coverage: dict[Path, float] = {}
        self._folders: dict[str, Mapping[str, Path]] = {}

    def assign(self, record: ImageRecord, data: DataConfig) -> ImageRecord:
        path = record.mask_path
        if path is None and data.mask_dir.strip():
            path = self._in_folder(record, data.mask_dir.strip())
        if path is None and data.masks_beside:
            path = _mask_beside(record.path)
        alpha = path is None and (data.alpha_mask or record.alpha_mask) and "transparent" in record.notes
        record = attrs.evolve(record, mask_path=path, alpha_mask=alpha)
        if not has_mask(record):
            return record
        try:
            small = _open_mask(record).resize((COVERAGE_SIDE, COVERAGE_SIDE), Image.Resampling.BOX)
        except DatasetError as error:
            reason = say("Its mask: {why}", why=error.problems[0].message)
            return attrs.evolve(record, usable=False, notes=("broken", *record.notes), reason=reason)
        self.coverage[record.path] = float(np.asarray(small, dtype=np.float32).mean()) / 255.0
        return record

    def _in_folder(self, record: ImageRecord, folder: str) -> Path | None:
        if folder not in self._folders:
            self._folders[folder] = dict(_masks_by_name(Path(folder)))
        masks = self._folders[folder]
        parts = record.key.split("/")
        names = [_mask_name("/".join(parts[start:])) for start in range(len(parts))]
        return next((masks[name] for name in names if name in masks), None)


def _masks_by_name(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name without suffix, path) of every mask in a folder: by file name, and by path inside the folder."""
    try:
        is_folder = folder.is_dir()
    except OSError:  # a name that is too long
        is_folder = False
    if not is_folder:
        raise DatasetError(
            "there is no folder of masks {folder}.", path="data.mask_dir", folder=str(folder), fix="Choose the folder that holds the masks."
        )
    paths = sorted(path for path in folder.rglob("*") if is_picture(path.name) and path.is_file())
    for path in paths:
        yield _mask_name(path.name), path
    for path in paths:
        yield _mask_name(path.relative_to(folder).as_posix()), path


def _mask_name(key: str) -> str:
    name = nfc(key).rpartition(".")[0].casefold()
    return name.removesuffix(MASK_SUFFIX)


def _mask_beside(picture: Path) -> Path | None:
    mask = picture.with_name(f"{picture.stem}{MASK_SUFFIX}.png")
    return mask if mask.is_file() else None


def _no_masks_error(data: DataConfig, count: int) -> DatasetError:
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


def _about_unused_masks(records: Sequence[ImageRecord]) -> Iterator[Message]:
    with_mask = [record.key for record in records if record.usable and _mask_beside(record.path)]
    if with_mask:
        yield say(
            "Masks lie beside {count} pictures and are not used; set data.masks_beside = true to learn only inside them.",
            count=len(with_mask),
        )


def _about_coverage(maskable: Sequence[ImageRecord], coverage: Sequence[tuple[ImageRecord, float]]) -> Iterator[Message]:
    mean = sum(share for _, share in coverage) / len(coverage)
    yield say(
        "{count} of {all} pictures have masks; on average {share} % of a masked picture is learned.",
        count=len(coverage),
        all=len(maskable),
        share=round(100 * mean, 1),
    )
    empty = [record.key for record, share in coverage if share == 0.0]
    if empty:
        names = ", ".join(empty[:NAMED]) + (" ..." if len(empty) > NAMED else "")
        yield say(
            "Masks that are black all over, so that nothing of the picture is learned ({count}): {names}", count=len(empty), names=names
        )
