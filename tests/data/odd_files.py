"""Draws a folder of more than two hundred odd files, each with the verdict that it deserves."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from .conftest import noise

Make = Callable[[Path, int], None]
USED, TURNED, CLEAR, ENDING, BROKEN, NO_PICTURE, TOO_SMALL = (
    "used",
    "rotated",
    "transparent",
    "wrong-ending",
    "broken",
    "not-a-picture",
    "too-small",
)


def draw_all(folder: Path) -> dict[str, str]:
    """Writes the files; name -> verdict."""
    folder.mkdir(parents=True)
    verdicts = {}
    for number, (name, verdict, make) in enumerate(kinds()):
        make(folder / name, number)
        verdicts[name] = verdict
    return verdicts


def kinds() -> Iterator[tuple[str, str, Make]]:
    """(file name, verdict, how it is written) of every file."""
    for number in range(6):
        yield from _plain(number)
        yield from _modes(number)
        yield from _harmed(number)
        yield from _shapes(number)
    for turn in range(1, 9):
        for ending in ("jpg", "png", "webp", "tif"):
            yield f"turned {turn}.{ending}", TURNED if turn > 1 else USED, _saved(exif=turn, **_lossless(ending))
    for number, name in enumerate(["数据 集", "ü {x}", "[1]", "a'b", "x" * 240, "名" * 70, "%s %d", "a  b", "ñ́", "#&;"]):
        yield f"{name}.png", USED, _saved()
        yield f"{name} {number}.JPG"[-200:], USED, _saved()


def _plain(number: int) -> Iterator[tuple[str, str, Make]]:
    for ending in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "webp", "jfif"):
        yield f"plain {number}.{ending}", USED, _saved(kind="JPEG" if ending == "jfif" else None)
    yield f"animated {number}.gif", USED, _animated
    yield f"animated {number}.webp", USED, _animated
    yield f"jpeg as {number}.png", ENDING, _saved(kind="JPEG")
    yield f"png as {number}.jpg", ENDING, _saved(kind="PNG")
    yield f"progressive {number}.jpg", USED, _saved(progressive=True)


def _modes(number: int) -> Iterator[tuple[str, str, Make]]:
    for mode in ("L", "1", "P"):
        yield f"mode {mode} {number}.png", USED, _saved(mode=mode)
    yield f"cmyk {number}.jpg", USED, _saved(mode="CMYK")
    yield f"sixteen {number}.png", USED, _sixteen
    yield f"float {number}.tif", USED, _float
    yield f"lab {number}.tif", USED, _lab
    yield f"garbage profile {number}.png", USED, _saved(icc_profile=b"garbage")
    yield f"clear {number}.png", CLEAR, _clear
    yield f"clear {number}.webp", CLEAR, _clear
    yield f"opaque alpha {number}.png", USED, _saved(mode="RGBA")
    yield f"clear colour {number}.png", CLEAR, _clear_colour


def _harmed(number: int) -> Iterator[tuple[str, str, Make]]:
    for ending in ("png", "jpg", "webp", "bmp", "tif"):
        yield f"cut off {number}.{ending}", BROKEN, _cut_off
    yield f"empty {number}.png", BROKEN, lambda path, _: _write(path, b"")
    yield f"text {number}.jpg", NO_PICTURE, lambda path, _: _write(path, b"<html>not found</html>")
    yield f"bomb {number}.png", BROKEN, _bomb
    yield f"only a head {number}.png", BROKEN, lambda path, _: _write(path, b"\x89PNG\r\n\x1a\n")
    yield f"harmed inside {number}.png", BROKEN, _harmed_inside
    yield f"phone {number}.heic", NO_PICTURE, lambda path, _: _write(path, b"\0\0\0\x18ftypheic")
    yield f"film {number}.mp4", NO_PICTURE, lambda path, _: _write(path, b"\0\0\0\x18ftypmp42")


def _shapes(number: int) -> Iterator[tuple[str, str, Make]]:
    yield f"one wide {number}.png", TOO_SMALL, _saved(size=(1, 500))
    yield f"tiny {number}.jpg", TOO_SMALL, _saved(size=(31, 200))
    yield f"just enough {number}.png", USED, _saved(size=(32, 33))
    if number < 2:
        yield f"twelve thousand {number}.png", USED, _saved(size=(12000, 40))
        yield f"tall {number}.jpg", USED, _saved(size=(36, 9000))


def _lossless(ending: str) -> dict[str, bool]:
    return {"lossless": True} if ending == "webp" else {}


def _saved(*, size: tuple[int, int] = (72, 56), mode: str = "RGB", kind: str | None = None, exif: int = 0, **options) -> Make:
    def make(path: Path, seed: int) -> None:
        known = dict(options)
        if exif:
            known["exif"] = Image.Exif()
            known["exif"][0x0112] = exif
        noise(size, seed).convert(mode).save(path, kind, **known)

    return make


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _animated(path: Path, seed: int) -> None:
    frames = [noise((64, 48), 1000 + seed), noise((64, 48), 2000 + seed)]
    noise((64, 48), seed).save(path, save_all=True, append_images=frames)


def _sixteen(path: Path, seed: int) -> None:
    values = np.asarray(noise((64, 48), seed).convert("L"), dtype=np.uint16) * 257
    Image.fromarray(values).save(path)


def _float(path: Path, seed: int) -> None:
    Image.fromarray(np.asarray(noise((64, 48), seed).convert("L"), dtype=np.float32) / 255).save(path)


def _lab(path: Path, seed: int) -> None:
    srgb, lab = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("sRGB", "LAB"))
    ImageCms.profileToProfile(noise((64, 48), seed), srgb, lab, outputMode="LAB").save(path, icc_profile=lab.tobytes())


def _clear(path: Path, seed: int) -> None:
    picture = noise((64, 48), seed)
    picture.putalpha(Image.linear_gradient("L").resize((64, 48)))
    picture.save(path)


def _clear_colour(path: Path, seed: int) -> None:
    picture = noise((64, 48), seed)
    picture.paste((255, 0, 255), (0, 0, 20, 20))
    picture.save(path, transparency=(255, 0, 255))


def _packed(path: Path, seed: int) -> bytes:
    whole = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(path.suffix[1:], path.suffix[1:].upper())
    noise((200, 200), seed).save(whole, kind)
    return whole.getvalue()


def _cut_off(path: Path, seed: int) -> None:
    data = _packed(path, seed)
    path.write_bytes(data[: len(data) * 6 // 10])


def _harmed_inside(path: Path, seed: int) -> None:
    data = bytearray(_packed(path, seed))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(data))


def _bomb(path: Path, _: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
