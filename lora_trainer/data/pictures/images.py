"""Opens pictures of every format as upright RGB on white, and fits them to their buckets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from lora_trainer.data.pictures.crops import frame_box
from lora_trainer.data.pictures.image_header import UNREADABLE, has_alpha, require_complete, unreadable_reason, upright
from lora_trainer.data.records import ImageRecord
from lora_trainer.errors import DatasetError
from lora_trainer.files import open_regular

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
"""Resampling filters by sd-scripts' names."""


def open_picture(path: Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The picture as RGB: rotated by EXIF, alpha composited on `background`, 16 bit and CMYK converted, first frame of an animation.

    Colours with an ICC profile are converted to sRGB. Raises DatasetError naming the file.
    """
    return _open(path, background, None)


def load_bucket_image(record: ImageRecord) -> NDArray[np.uint8]:
    """Pixels uint8 [height, width, 3] of the record in its bucket. Raises DatasetError naming the file."""
    return np.asarray(crop_to_bucket(open_picture(record.path), record), dtype=np.uint8)


def crop_to_bucket(picture: Image.Image, record: ImageRecord) -> Image.Image:
    """The frame of an upright picture, resized and cropped to its bucket. Raises DatasetError if its size has changed."""
    if record.bucket is None or record.resized is None or record.crop is None:
        raise ValueError(f"{record.key} has no bucket: call buckets.assign_buckets first")
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
    """JPEG of the picture with no side longer than `size` pixels. Raises DatasetError naming the file."""
    picture = _open(path, WHITE, size)
    picture.thumbnail((size, size), Image.Resampling.BILINEAR)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85)
    return packed.getvalue()


def open_small(path: Path, size: int) -> Image.Image:
    """As open_picture, but JPEGs are only decoded to about `size` pixels, which is fast. Raises DatasetError."""
    return _open(path, WHITE, size)


@contextmanager
def decoded_image(path: Path, draft: int | None = None) -> Iterator[Image.Image]:
    """The decoded picture as stored. Errors, here or in the block, become a DatasetError that names the file."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            require_complete(path, image)
            if draft is not None:
                image.draft("RGB", (draft, draft))
            image.load()
            yield image
    except UNREADABLE as error:
        raise DatasetError(
            "{file} cannot be read: {why}",
            path=str(path),
            file=path.name,
            why=unreadable_reason(error),
            fix="Save it again with an image program, or leave it out.",
        ) from error


def _open(path: Path, background: tuple[int, int, int], draft: int | None) -> Image.Image:
    with decoded_image(path, draft) as image:
        return _flatten_alpha(_to_srgb(to_8_bit(upright(image))), background)


def to_8_bit(image: Image.Image) -> Image.Image:
    """16 bit, 32 bit and float greyscale as 8 bit; other modes unchanged."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        top = float(values.max(initial=0.0))
        scale = 255.0 if image.mode == "F" and top <= 1.0 else (1.0 if top <= 255 else 255.0 / 65535.0)
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
    return image


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "LAB", "RGBA"):
        return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image
    try:
        source_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "CMYK" and "srgb" in ImageCms.getProfileDescription(source_profile).lower():
            return image
        target = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source_profile, ImageCms.createProfile("sRGB"), outputMode=target)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a broken profile: the plain conversion is good enough
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    return converted if converted is not None else image


def _flatten_alpha(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not has_alpha(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB")
