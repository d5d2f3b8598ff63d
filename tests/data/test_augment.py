"""Pictures that are different each time, and always the same for the same draw."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from lora_trainer.config.build import build
from lora_trainer.config.schema import DataConfig
from lora_trainer.data.buckets import assign_buckets
from lora_trainer.data.pictures.augment import Colours, augment, face_in_name
from lora_trainer.data.pictures.images import load_bucket_image
from lora_trainer.errors import ConfigError

from .conftest import noise, record

CUT = DataConfig(cache_latents=False, random_crop=True)
COLOUR = DataConfig(cache_latents=False, color_aug=True)
FACES = DataConfig(cache_latents=False, face_crop_aug_range="2.0,4.0")


def one(size=(640, 300), name="a.png", **data):
    options = build({"data": {"resolution": 256, "enable_bucket": False, **data}}).data
    return assign_buckets([record(name, width=size[0], height=size[1], bucket=None)], options)[0]


def draws(what, data, count=300, **known):
    return [augment(what, data, seed=1, epoch=epoch, repeat=0, **known) for epoch in range(count)]


def test_the_same_draw_gives_the_same_picture_and_another_epoch_repeat_seed_or_picture_another():
    data, what = attrs.evolve(CUT, color_aug=True), one()
    same = augment(what, data, seed=1, epoch=2, repeat=0)
    assert augment(what, data, seed=1, epoch=2, repeat=0) == same
    others = [
        augment(what, data, seed=2, epoch=2, repeat=0),
        augment(what, data, seed=1, epoch=3, repeat=0),
        augment(what, data, seed=1, epoch=2, repeat=1),
        augment(one(name="b.png"), data, seed=1, epoch=2, repeat=0),
    ]
    assert all(other[0].crop != same[0].crop for other in others)


def test_without_options_nothing_varies():
    what = one()
    assert draws(what, DataConfig(), 20) == [(what, Colours())] * 20


def test_a_random_cut_reaches_both_ends_and_never_leaves_the_picture():
    what = one()
    lefts = [found.crop[0] for found, _ in draws(what, CUT, 2000)]
    assert min(lefts) == 0 and max(lefts) == what.resized[0] - 256 and len(set(lefts)) > 200
    assert abs(np.mean(lefts) - max(lefts) / 2) < 10
    assert all(found.crop[1:] == (0, 256, 256) and found.resized == what.resized for found, _ in draws(what, CUT, 50))


def test_colours_vary_a_third_of_the_times_within_the_range():
    colours = [found for _, found in draws(one(), COLOUR, 3000)]
    changed = [found for found in colours if found != Colours()]
    assert 0.29 < len(changed) / len(colours) < 0.37
    assert all(abs(found.hue) <= 16 / 360 and abs(found.gamma - 1) <= 0.05 for found in changed)
    turned = [found for found in changed if found.hue]
    assert 0.4 < len(turned) / len(changed) < 0.6 and not any(found.hue and found.gamma != 1 for found in changed)


def test_hue_turns_red_towards_yellow_and_leaves_grey():
    picture = np.array([[[255, 0, 0], [128, 128, 128], [0, 0, 0]]], np.uint8)
    turned = Colours(hue=16 / 360).apply(picture)
    assert turned[0, 0, 0] == 255 and 50 < turned[0, 0, 1] < 80 and turned[0, 0, 2] == 0
    assert np.array_equal(turned[0, 1:], picture[0, 1:])
    assert np.array_equal(Colours().apply(picture), picture)


def test_gamma_bends_the_middle_and_keeps_black_and_white():
    picture = np.array([[[0, 128, 255]]], np.uint8)
    assert Colours(gamma=1.05).apply(picture)[0, 0].tolist() == [0, round(255 * (128 / 255) ** 1.05), 255]
    assert Colours(gamma=0.95).apply(picture)[0, 0, 1] > 128


def test_what_was_drawn_is_what_is_read(tmp_path):
    noise((200, 100), 4).save(tmp_path / "a.png")
    options = build({"data": {"resolution": 64, "enable_bucket": False}}).data
    what = assign_buckets([attrs.evolve(record("a.png", width=200, height=100, bucket=None), path=tmp_path / "a.png")], options)[0]
    whole = load_bucket_image(attrs.evolve(what, bucket=what.resized, crop=(0, 0, *what.resized)))
    for found, _ in draws(what, CUT, 5):
        left, top, width, height = found.crop
        assert np.array_equal(load_bucket_image(found), whole[top : top + height, left : left + width])


# --- faces ----------------------------------------------------------------------------------------------------------------------------


def test_a_face_is_read_from_the_file_name_as_sd_scripts_tools_write_it():
    assert face_in_name(one(name="my_girl_320_100_80_60.png")) == (320, 100, 80, 60)
    for name in ("a.png", "girl_1_2_3.png", "320_100_80_60.png", "a_320_100_80_x.png", "a_9999_100_80_60.png", "a_320_100_0_0.png"):
        assert face_in_name(one(name=name)) is None, name


def test_a_cut_around_a_face_is_between_two_and_four_faces_wide_and_holds_it():
    what = one((2000, 1500), "a_1400_400_300_200.png")
    shares = []
    for found, _ in draws(what, FACES, 300):
        scale = found.resized[0] / 2000
        shares.append(256 / (300 * scale))
        left, top, width, height = found.crop
        assert left <= 1400 * scale < left + width and top <= 400 * scale < top + height
        assert left >= 0 and top >= 0 and left + width <= found.resized[0] and top + height <= found.resized[1]
        assert found.bucket == (256, 256) == (width, height)
    assert min(shares) == pytest.approx(2, abs=0.1) and max(shares) == pytest.approx(4, abs=0.1)


def test_a_face_is_never_enlarged_beyond_the_pictures_own_size():
    tiny = one((600, 600), "a_300_300_20_20.png")
    assert all(found.resized[0] <= 600 for found, _ in draws(tiny, FACES, 50))


def test_a_small_picture_is_enlarged_just_enough():
    small = one((100, 200), "a_50_50_40_40.png")
    assert all(found.resized == (256, 512) for found, _ in draws(small, FACES, 20))


def test_a_face_in_a_chosen_part_is_where_the_part_shows_it():
    what = attrs.evolve(one((500, 1000), "a_700_400_100_100.png"), frame=(0.5, 0.0, 1.0, 1.0))
    assert face_in_name(what) == (200, 400, 100, 100)
    assert face_in_name(attrs.evolve(what, frame=(0.0, 0.0, 0.5, 1.0))) is None


def test_a_picture_without_a_face_in_its_name_is_cut_in_the_middle():
    what = one()
    assert {found.crop for found, _ in draws(what, FACES, 20)} == {what.crop}


# --- impossible together --------------------------------------------------------------------------------------------------------------


def problems(**data) -> dict[str, str]:
    try:
        build({"data": data})
    except ConfigError as error:
        return {problem.path: problem.text() for problem in error.problems}
    return {}


@pytest.mark.parametrize("option", [{"color_aug": True}, {"random_crop": True}, {"face_crop_aug_range": "2.0,4.0"}])
def test_what_varies_cannot_be_kept_encoded_and_the_remedy_is_told(option):
    name = next(iter(option))
    found = problems(**option)
    assert list(found) == [f"data.{name}"] and "data.cache_latents = false" in found[f"data.{name}"]
    assert problems(**option, cache_latents=False) == {}
    assert problems(flip_aug=True) == {}


def test_a_folder_of_its_own_that_varies_is_named_too():
    found = problems(subsets=[{"image_dir": "a"}, {"image_dir": "b", "color_aug": True}])
    assert list(found) == ["data.subsets[1].color_aug"]


@pytest.mark.parametrize("text", ["2", "4.0,2.0", "0.5,2", "a,b", "1,2,3"])
def test_a_wrong_range_of_faces_is_named(text):
    assert "range of two numbers" in problems(face_crop_aug_range=text, cache_latents=False)["data.face_crop_aug_range"]


def test_a_face_and_chance_cannot_both_decide():
    assert "random_crop" in problems(face_crop_aug_range="2,4", random_crop=True, cache_latents=False)["data.face_crop_aug_range"]


@pytest.mark.parametrize("text", ["a.png", "a.png=0,0,1", "a.png=0.5,0,0.5,1", "a.png=0,0,1.2,1", "=0,0,1,1", "a.png=0,0,x,1"])
def test_a_chosen_part_that_is_none_is_named(text):
    assert "left,top,right,bottom" in problems(crops=[text])["data.crops"]
    assert problems(crops=["a=b/c.png=0,0.1,1,0.9"]) == {}
