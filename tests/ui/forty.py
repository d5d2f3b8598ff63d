"""A folder of forty files of the kinds that people bring, most of them with something the matter."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path

from PIL import Image


def motif(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A picture of soft patches that resembles no other seed's."""
    noise = random.Random(seed)
    cells = Image.new("RGB", (9, 9))
    cells.putdata([tuple(noise.randrange(256) for _ in range(3)) for _ in range(81)])
    return cells.resize(size, Image.Resampling.BICUBIC).convert(mode)


def draw_forty(folder: Path) -> dict[str, str]:
    """Fills the folder; file name -> the word of the badge that it is to get ("" for none)."""
    folder.mkdir(parents=True)
    wanted: dict[str, str] = {}
    plain = [(640, 640), (512, 640), (640, 512), (600, 800)]
    for number in range(14):
        motif(number, plain[number % 4]).save(folder / f"plain_{number:02d}.png")
        wanted[f"plain_{number:02d}.png"] = ""
    for number, mode in enumerate(("L", "CMYK", "P")):
        name = f"mode_{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        motif(100 + number, (640, 640), mode).save(folder / name)
        wanted[name] = ""
    turned = Image.Exif()
    turned[0x0112] = 6
    for number in range(3):
        motif(200 + number, (800, 600)).save(folder / f"turned_{number}.jpg", exif=turned, quality=95)
        wanted[f"turned_{number}.jpg"] = "rotated"
    for number in range(3):
        image = motif(300 + number, (640, 640), "RGBA")
        image.paste((0, 0, 0, 0), (0, 0, 320, 640))
        image.save(folder / f"clear_{number}.png")
        wanted[f"clear_{number}.png"] = "transparent"
    whole = io.BytesIO()
    motif(400, (640, 640)).save(whole, "PNG")
    (folder / "cut_off.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "no_bytes.jpg").write_bytes(b"")
    (folder / "a_page.png").write_text("<html>not found</html>", encoding="utf-8")
    wanted |= {"cut_off.png": "broken", "no_bytes.jpg": "broken", "a_page.png": "not a picture"}
    (folder / "layers.psd").write_bytes(b"8BPS")
    (folder / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    wanted |= {"layers.psd": "not a picture", "film.mp4": "not a picture"}
    for number in range(2):
        motif(500 + number, (20, 400)).save(folder / f"narrow_{number}.png")
        wanted[f"narrow_{number}.png"] = "too small"
    for number in range(3):
        motif(600 + number, (200, 200)).save(folder / f"little_{number}.png")
        wanted[f"little_{number}.png"] = "small"
    for number in range(3):
        Image.open(folder / f"plain_{number:02d}.png").save(folder / f"plain_{number:02d}_again.jpg", quality=90)
        wanted[f"plain_{number:02d}_again.jpg"] = "near-copy"
    for number in range(2):
        motif(700 + number, (640, 640)).save(folder / f"renamed_{number}.jpg", "PNG")
        wanted[f"renamed_{number}.jpg"] = "wrong ending"
    for number in range(2):
        motif(800 + number, (1600, 300)).save(folder / f"wide_{number}.png")
        wanted[f"wide_{number}.png"] = ""
    assert len(wanted) == 40
    return wanted


def add_masks(folder: Path, *names: str) -> None:
    """A mask beside each: its left half is learned."""
    for name in names:
        with Image.open(folder / name) as image:
            size = image.size
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(folder / f"{Path(name).stem}-masklabel.png")


def copy_some(folder: Path, target: Path, *names: str) -> Path:
    """Some of the pictures in another folder."""
    target.mkdir(parents=True)
    for name in names:
        shutil.copy(folder / name, target / name)
    return target
