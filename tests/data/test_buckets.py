"""Groups of sizes by sd-scripts' rule. The lists here were worked out by hand from that rule, not by the code."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config.build import build
from lora_trainer.data.buckets import (
    assign_buckets,
    bucket_counts,
    fit_to_bucket,
    make_bucket_resolutions,
    select_bucket,
    select_bucket_no_upscale,
)

from .conftest import record

# 512 x 512 = 262144 pixels. Width 256 -> 1024, 320 -> 819 -> 768 and so on; see formats of sd-scripts' make_bucket_resolutions.
SD15 = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512)]
SD15 += [(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
SD768 = [(320, 1024), (384, 1024), (448, 1024), (512, 1024), (512, 1088), (512, 1152), (576, 960), (576, 1024), (640, 896), (704, 832)]


def kept_area(choice) -> float:
    return choice.crop[2] * choice.crop[3] / (choice.resized[0] * choice.resized[1])


def test_the_sizes_of_512_from_256_to_1024_are_sd_scripts():
    assert make_bucket_resolutions((512, 512), 256, 1024, 64) == SD15


def test_a_larger_smallest_side_takes_the_narrow_sizes_away():
    assert make_bucket_resolutions((512, 512), 384, 1024, 64) == [size for size in SD15 if min(size) >= 384]


def test_a_longest_side_cuts_the_lists_both_ways():
    # width 256 -> min(640, 1024) = 640, 320 -> 640, 384 -> 640, 448 -> 576, 512 -> 512, 576 -> 448, 640 -> 384
    expected = {(256, 640), (320, 640), (384, 640), (448, 576), (512, 512)}
    assert make_bucket_resolutions((512, 512), 256, 640, 64) == sorted(expected | {(height, width) for width, height in expected})


def test_steps_of_32_give_finer_sizes():
    # 65536 pixels: 128 -> 512, 160 -> 409 -> 384, 192 -> 341 -> 320, 224 -> 292 -> 288, 256 -> 256, 288 -> 227 -> 224, ...
    half = [(128, 416), (128, 448), (128, 480), (128, 512), (160, 352), (160, 384), (192, 320), (224, 288), (256, 256)]
    found = make_bucket_resolutions((256, 256), 128, 512, 32)
    assert [size for size in found if size[0] <= size[1]] == half


def test_the_training_size_itself_is_always_within_the_limits():
    assert make_bucket_resolutions((64, 64), 256, 1024, 64) == sorted([(64, 64)])
    assert (1280, 1280) in make_bucket_resolutions((1280, 1280), 256, 1024, 64)
    assert make_bucket_resolutions((768, 768), 320, 1024, 64)[0] == (320, 1024)


sides = st.integers(8, 64).map(lambda number: number * 8)
steps = st.sampled_from([8, 16, 32, 64])
pictures = st.tuples(st.integers(32, 4000), st.integers(32, 4000))


@given(sides, sides, steps, st.integers(32, 512), st.integers(256, 2048))
def test_no_size_is_larger_than_the_training_area_or_off_its_steps(width, height, step, low, high):
    sizes = make_bucket_resolutions((width, height), low, high, step)
    assert sizes == sorted(set(sizes))
    for size in sizes:
        assert size[0] * size[1] <= width * height and size[0] % step == size[1] % step == 0 and min(size) > 0
        assert size[::-1] in sizes
    assert any(size[0] == size[1] for size in sizes)


@pytest.mark.parametrize(
    "size, bucket, resized, crop",
    [
        ((512, 512), (512, 512), (512, 512), (0, 0, 512, 512)),
        ((640, 384), (640, 384), (640, 384), (0, 0, 640, 384)),  # its own size is there
        ((1000, 1000), (512, 512), (512, 512), (0, 0, 512, 512)),
        ((3000, 2000), (640, 384), (640, 427), (0, 21, 640, 384)),  # 1.5: 1.667 is nearer than 1.286; narrower, so by width
        ((1400, 1000), (576, 448), (627, 448), (25, 0, 576, 448)),  # 1.4: 1.286 is nearer; wider, so by height
        ((2000, 3000), (384, 640), (427, 640), (21, 0, 384, 640)),  # 0.667: 0.6 is nearer than 0.778
        ((800, 1200), (384, 640), (427, 640), (21, 0, 384, 640)),
        ((1200, 1000), (576, 448), (576, 480), (0, 16, 576, 448)),  # 1.2: narrower than 1.286, so by width
    ],
)
def test_a_picture_goes_to_the_nearest_shape_and_the_middle_is_kept(size, bucket, resized, crop):
    choice = select_bucket(size, SD15)
    assert (choice.bucket, choice.resized, choice.crop) == (bucket, resized, crop)


@given(pictures)
def test_every_picture_covers_its_bucket_with_its_shape_kept(size):
    choice = select_bucket(size, SD15)
    (width, height), (across, down) = choice.resized, choice.bucket
    assert width >= across and height >= down and (width == across or height == down)
    assert choice.crop == ((width - across) // 2, (height - down) // 2, across, down)
    assert 0 < kept_area(choice) <= 1
    assert abs(width - size[0] * height / size[1]) <= 1 + width / height or abs(height - size[1] * width / size[0]) <= 1 + height / width


def test_without_groups_the_picture_covers_the_training_size():
    choice = fit_to_bucket((1536, 1024), (512, 512))
    assert (choice.resized, choice.crop) == ((768, 512), (128, 0, 512, 512)) and kept_area(choice) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "size, bucket, resized",
    [
        ((300, 200), (256, 192), (300, 200)),  # smaller: own size, cut to steps
        ((512, 512), (512, 512), (512, 512)),
        # 600 x 600 is larger: sqrt(262144) = 512 both ways
        ((600, 600), (512, 512), (512, 512)),
        # 1000 x 500: shape 2, width 724 -> 704 (height 352 -> 320: 2.2), height 362 -> 320 (width 640: 2.0) -> by height
        ((1000, 500), (640, 320), (640, 320)),
        # 900 x 600: shape 1.5, width 627 -> 576 (384 -> 384: 1.5) -> by width, height 384
        ((900, 600), (576, 384), (576, 384)),
    ],
)
def test_pictures_that_may_not_grow_keep_their_size_or_shrink_to_the_area(size, bucket, resized):
    choice = select_bucket_no_upscale(size, (512, 512), 64)
    assert (choice.bucket, choice.resized) == (bucket, resized)


@given(pictures, steps)
def test_pictures_that_may_not_grow_never_do_except_to_one_step(size, step):
    choice = select_bucket_no_upscale(size, (512, 512), step)
    assert choice.bucket[0] % step == choice.bucket[1] % step == 0 and min(choice.bucket) >= step
    assert choice.resized[0] >= choice.bucket[0] and choice.resized[1] >= choice.bucket[1]
    if min(size) >= 2 * step and max(size) / min(size) < 4:
        assert choice.resized[0] <= size[0] and choice.resized[1] <= size[1]
        assert choice.bucket[0] * choice.bucket[1] <= max(512 * 512, math.prod(size))


def placed(size, **data):
    return assign_buckets([record(width=size[0], height=size[1], bucket=None)], build({"data": {"resolution": 512, **data}}).data)[0]


def test_place_follows_the_settings():
    assert placed((3000, 2000)).bucket == (640, 384)
    assert placed((3000, 2000), enable_bucket=False).crop == (128, 0, 512, 512)
    assert placed((300, 200), bucket_no_upscale=True).resized == (300, 200)
    assert placed((3000, 2000), resolution=[768, 512], enable_bucket=False).bucket == (768, 512)


def test_a_picture_that_has_to_grow_is_noted_once():
    small = placed((300, 200))
    assert small.notes == ("small",) and small.usable
    assert assign_buckets([small], build({"data": {"resolution": 512}}).data)[0].notes == ("small",)
    assert assign_buckets([small], build({"data": {"resolution": 128}}).data)[0].notes == ()
    assert placed((300, 200), bucket_no_upscale=True).notes == ()


def test_unusable_pictures_pass_untouched_and_are_not_counted():
    data = build({"data": {"resolution": 512}}).data
    records = [
        record("a.png", width=0, height=0, bucket=None, usable=False),
        record("b.png", bucket=None),
        record("c.png", validation=True),
    ]
    found = assign_buckets(records, data)
    assert found[0] is records[0] and bucket_counts(found) == [((512, 512), 1)]
