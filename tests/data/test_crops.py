"""The part of a picture that the user chose is what is trained on; the file stays as it is."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from lora_trainer.data.pictures.crops import apply_frames, frame_box
from lora_trainer.data.pictures.images import load_bucket_image, open_picture
from lora_trainer.errors import DatasetError

from .conftest import noise
from .encoder import placed
from .scanning import scan


def test_a_frame_is_taken_to_the_nearest_pixel_and_holds_at_least_one():
    assert frame_box((0.25, 0.5, 0.75, 1.0), (200, 100)) == (50, 50, 150, 100)
    assert frame_box((0.0, 0.0, 1.0, 1.0), (333, 77)) == (0, 0, 333, 77)
    assert frame_box((0.999, 0.999, 1.0, 1.0), (10, 10)) == (9, 9, 10, 10)


def test_a_frame_is_read_from_its_text(tmp_path):
    noise((200, 100), 1).save(tmp_path / "a=b.png")
    assert next(apply_frames(scan(tmp_path).records, ["a=b.png=0.1,0.2,0.85,1"])).frame == (0.1, 0.2, 0.85, 1.0)


def test_buckets_see_the_frame_alone(tmp_path):
    noise((200, 100), 1).save(tmp_path / "a.png")
    noise((200, 100), 2).save(tmp_path / "b.png")
    one, other = placed(tmp_path, ("a.png=0,0,0.25,1",), resolution=128, min_bucket_reso=64, bucket_reso_steps=8)
    assert (one.width, one.height) == (50, 100) and one.bucket[0] < one.bucket[1] and other.bucket[0] > other.bucket[1]


def test_pixels_are_those_of_the_frame_and_the_file_stays(tmp_path):
    noise((128, 128), 1).save(tmp_path / "a.png")
    before = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    one = placed(tmp_path, ("a.png=0.5,0.25,1,0.75",), enable_bucket=False)[0]
    assert np.array_equal(load_bucket_image(one), np.asarray(Image.open(tmp_path / "a.png"))[32:96, 64:128])
    assert hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest() == before


def test_a_frame_belongs_to_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((200, 100), 5).save(tmp_path / "a.jpg", exif=exif, quality=95)
    one = placed(tmp_path, ("a.jpg=0,0,1,0.5",), enable_bucket=False)[0]
    assert (one.width, one.height) == (100, 100)
    upper = open_picture(tmp_path / "a.jpg").crop((0, 0, 100, 100)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(load_bucket_image(one), np.asarray(upper))


def test_a_frame_that_is_too_small_leaves_the_picture_out_and_says_why(tmp_path):
    for name in ("a.png", "b.png"):
        noise((100, 100), 1).save(tmp_path / name)
    one, other = placed(tmp_path, ("a.png=0,0,0.2,1",))
    assert not one.usable and one.verdict == "too-small" and "20 x 100" in one.reason.text() and other.usable


def test_a_picture_that_changed_its_size_under_a_frame_is_named(tmp_path):
    noise((100, 100), 1).save(tmp_path / "a.png")
    one = placed(tmp_path, ("a.png=0,0,0.5,1",))[0]
    noise((80, 100), 1).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png has changed"):
        load_bucket_image(one)


def test_frames_of_pictures_that_are_not_there_do_not_matter(tmp_path):
    noise((100, 100), 1).save(tmp_path / "a.png")
    assert placed(tmp_path, ("gone.png=0,0,0.5,1",))[0].frame is None
