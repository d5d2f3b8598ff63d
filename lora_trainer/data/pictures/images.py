"""Opening pictures: every kind of file becomes RGB, upright, on white; and is brought to its bucket."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from lora_trainer.data.pictures.crops import frame_box
from lora_trainer.data.pictures.image_header import UNREADABLE, has_alpha, refuse_cut_off, upright, why_unreadable
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError

WHITE = (255, 255, 255)
INTERPOLATIONS = {
    "": Image.Resampling.LANCZOS,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "box": Image.Resampling.BOX,
}
"""sd-scripts' words for how pictures are resized."""


def open_picture(path: Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The picture as RGB: turned by EXIF, transparency laid on `background`, 16 bit and CMYK converted, the first of an animation.

    Colours with an ICC profile of their own are brought to sRGB. Raises DatasetError naming the file.
    """
    return _opened(path, background, None)


def fitted(record: ImageRecord) -> NDArray[np.uint8]:
    """Pixels uint8 [height, width, 3] of the record's bucket: its frame, resized and cut. Raises DatasetError naming the file."""
    return np.asarray(into_bucket(open_picture(record.path), record), dtype=np.uint8)


def into_bucket(picture: Image.Image, record: ImageRecord) -> Image.Image:
    """The part of an upright picture that its record chose, resized and cut to its bucket. Raises DatasetError when it has another size."""
    if record.bucket is None or record.resized is None or record.crop is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.place first")
    if record.frame is not None:
        picture = picture.crop(frame_box(record.frame, picture.size))
    if picture.size != (record.width, record.height):
        raise DatasetError(
            "{file} has changed since the folder was read: {width} x {height} pixels now.",
            path=str(record.path),
            file=record.path.name,
            width=picture.size[0],
            height=picture.size[1],
            fix="Start again.",
        )
    if picture.size != record.resized:
        picture = picture.resize(record.resized, INTERPOLATIONS[record.interpolation])
    left, top, width, height = record.crop
    return picture.crop((left, top, left + width, top + height))


def thumbnail(path: Path, size: int = 256) -> bytes:
    """JPEG of the picture with no side longer than `size`. Raises DatasetError naming the file."""
    picture = _opened(path, WHITE, size)
    picture.thumbnail((size, size), Image.Resampling.BILINEAR)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85)
    return packed.getvalue()


def opened_small(path: Path, size: int) -> Image.Image:
    """As open_picture, but JPEGs are only decoded to about `size` pixels: for looking at many. Raises DatasetError."""
    return _opened(path, WHITE, size)


@contextmanager
def loaded(path: Path, draft: int | None = None) -> Iterator[Image.Image]:
    """The decoded picture as the file holds it. What fails, here or in the block, is a DatasetError that names the file."""
    try:
        with Image.open(path) as image:
            refuse_cut_off(path, image)
            if draft is not None:
                image.draft("RGB", (draft, draft))
            image.load()
            yield image
    except UNREADABLE as error:
        raise DatasetError(
            "{file} cannot be read: {why}",
            path=str(path),
            file=path.name,
            why=why_unreadable(error),
            fix="Save it again with an image program, or leave it out.",
        ) from error


def _opened(path: Path, background: tuple[int, int, int], draft: int | None) -> Image.Image:
    with loaded(path, draft) as image:
        return _on_background(_in_srgb(in_8_bit(upright(image))), background)


def in_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bit or of floats as 8 bit; other modes as they are."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        top = float(values.max(initial=0.0))
        scale = 255.0 if image.mode == "F" and top <= 1.0 else (1.0 if top <= 255 else 255.0 / 65535.0)
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8), "L")
    return image


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "LAB", "RGBA"):
        return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "CMYK" and "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        target = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode=target)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a broken profile: the plain conversion is good enough
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    return converted if converted is not None else image


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not has_alpha(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB")
