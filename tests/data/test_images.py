"""Every kind of file becomes the picture that a person sees."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from lora_trainer.config.build import build
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.pictures.images import load_bucket_image, open_picture, thumbnail
from lora_trainer.errors import DatasetError

from .conftest import noise, quartered
from .scanning import scan

RED, BLUE = (255, 0, 0), (0, 0, 255)


def close(pixel, colour, tolerance=6):
    return all(abs(int(a) - int(b)) <= tolerance for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.tif", "a.webp"])
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_the_usual_kinds_are_read(draw, name, mode):
    picture = open_picture(draw(name, mode=mode, **({"lossless": True} if name.endswith("webp") else {})))
    assert picture.mode == "RGB" and close(picture.getpixel((2, 2)), RED) and close(picture.getpixel((60, 40)), BLUE)


@pytest.mark.parametrize("turn, red", [(1, "left upper"), (2, "right upper"), (3, "right lower"), (4, "left lower"), (5, "left upper")])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_is_turned_as_its_camera_held_it(draw, name, turn, red):
    _turned(draw, name, turn, red)


@pytest.mark.parametrize("turn, red", [(6, "right upper"), (7, "right lower"), (8, "left lower")])
def test_a_portrait_photo_is_not_trained_sideways(draw, turn, red):
    _turned(draw, "a.jpg", turn, red)


def _turned(draw, name, turn, red):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = open_picture(draw(name, (64, 48), exif=exif))
    assert picture.size == ((48, 64) if turn > 4 else (64, 48))
    across = 4 if "left" in red else picture.width - 4
    down = 4 if "upper" in red else picture.height - 4
    assert close(picture.getpixel((across, down)), RED, 60) and close(picture.getpixel((picture.width - across, down)), BLUE, 60)


@pytest.mark.parametrize("mode, name", [("RGBA", "a.png"), ("LA", "a.png"), ("RGBA", "a.webp"), ("PA", "a.png")])
def test_what_is_transparent_becomes_white(tmp_path, mode, name):
    picture = Image.new("RGBA", (64, 48), (10, 10, 10, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 48))
    picture = picture.quantize(4) if mode == "PA" else picture.convert(mode)
    picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    seen = open_picture(tmp_path / name)
    assert close(seen.getpixel((2, 2)), (255, 255, 255)) and close(seen.getpixel((60, 2)), (10, 10, 10))
    assert close(open_picture(tmp_path / name, (0, 255, 0)).getpixel((2, 2)), (0, 255, 0))


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (64, 48), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert close(open_picture(tmp_path / "a.png").getpixel((0, 0)), (127, 127, 127))


def test_a_colour_that_counts_as_transparent_becomes_white(tmp_path):
    quartered((64, 48)).save(tmp_path / "a.png", transparency=RED)
    assert open_picture(tmp_path / "a.png").getpixel((2, 2)) == (255, 255, 255)


def test_grey_pictures_of_8_and_16_bit_and_floats_keep_their_brightness(tmp_path):
    ramp = np.linspace(0, 1, 64)[None].repeat(48, 0)
    Image.fromarray((ramp * 255).astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "16.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "f.tif")
    for name in ("8.png", "16.png", "16.tif", "f.tif"):
        seen = np.asarray(open_picture(tmp_path / name)).astype(int)
        assert seen.shape == (48, 64, 3) and np.abs(seen[0, :, 0] - ramp[0] * 255).max() <= 1, name


def test_black_and_white_and_cmyk_are_read(draw, tmp_path):
    assert close(open_picture(draw("a.jpg", mode="CMYK")).getpixel((4, 4)), RED, 40)
    Image.new("1", (64, 48), 1).save(tmp_path / "b.png")
    assert open_picture(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)


def test_colours_with_a_profile_of_their_own_are_brought_to_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture = ImageCms.profileToProfile(quartered((64, 48)), xyz, lab, outputMode="LAB")
    picture.save(tmp_path / "lab.tif", icc_profile=lab.tobytes())
    assert close(open_picture(tmp_path / "lab.tif").getpixel((4, 4)), RED, 12)


def test_a_profile_that_is_garbage_does_not_matter(draw):
    assert close(open_picture(draw("a.png", icc_profile=b"garbage")).getpixel((4, 4)), RED)


def test_the_first_picture_of_an_animation_is_read(tmp_path):
    others = [Image.new("RGB", (64, 48), BLUE)]
    Image.new("RGB", (64, 48), RED).save(tmp_path / "a.gif", save_all=True, append_images=others)
    Image.new("RGB", (64, 48), RED).save(tmp_path / "a.webp", save_all=True, append_images=others, lossless=True)
    assert open_picture(tmp_path / "a.gif").getpixel((0, 0)) == RED and open_picture(tmp_path / "a.webp").getpixel((0, 0)) == RED


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_file_that_was_cut_off_is_named_even_where_another_extension_lets_such_pass(tmp_path, monkeypatch, name, careless):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", careless)
    whole = io.BytesIO()
    noise((300, 300), 1).save(whole, "PNG" if name.endswith("png") else "JPEG")
    (tmp_path / name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(DatasetError) as caught:
        open_picture(tmp_path / name)
    assert name in caught.value.text() and caught.value.problems[0].path == str(tmp_path / name)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM" + b"\0" * 60]
)
def test_files_that_are_no_pictures_are_named(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.png"):
        open_picture(tmp_path / "a.png")


def placed(tmp_path, **data):
    return assign_buckets(
        scan(tmp_path).records, build({"data": {"resolution": 64, "bucket_reso_steps": 8, "min_bucket_reso": 32, **data}}).data
    )[0]


def test_a_picture_in_its_bucket_is_resized_and_cut_in_the_middle(draw, tmp_path):
    draw("a.png", (400, 200))
    one = placed(tmp_path, enable_bucket=False)
    pixels = load_bucket_image(one)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert close(pixels[10, 10], RED) and close(pixels[10, 54], BLUE) and close(pixels[54, 10], BLUE)
    assert one.crop == (32, 0, 64, 64)


def test_a_picture_of_its_buckets_size_keeps_every_pixel(tmp_path):
    original = noise((64, 64), 3)
    original.save(tmp_path / "a.png")
    assert np.array_equal(load_bucket_image(placed(tmp_path)), np.asarray(original))


def test_a_turned_picture_is_fitted_upright(draw, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw("a.jpg", (256, 128), exif=exif, quality=95)
    one = placed(tmp_path, max_bucket_reso=128)
    assert one.bucket[0] < one.bucket[1]
    pixels = load_bucket_image(one)
    assert pixels.shape[:2] == one.bucket[::-1] and close(pixels[4, -4], RED, 20) and close(pixels[4, 4], BLUE, 20)


def test_a_picture_that_changed_since_the_folder_was_read_is_named(draw, tmp_path):
    draw("a.png", (100, 100))
    one = placed(tmp_path)
    draw("a.png", (80, 100))
    with pytest.raises(DatasetError, match=r"a\.png has changed"):
        load_bucket_image(one)


def test_a_thumbnail_is_a_small_upright_jpeg(draw):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (draw("a.jpg", (1200, 600), exif=exif), draw("b.png", (600, 1200), mode="RGBA")):
        small = Image.open(io.BytesIO(thumbnail(path, 100)))
        assert small.format == "JPEG" and small.mode == "RGB" and small.size == (50, 100)
