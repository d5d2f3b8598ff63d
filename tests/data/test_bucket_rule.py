"""Groups, their assignment and crops against sd-scripts' rule, stated here a second time in other terms.

The rule, from its description: base square of whole steps; for every width of whole steps the largest height within the area; both
ways round. A picture goes to the group of its own size, else to the nearest ratio; it is scaled by the side that is too short and
cut in the middle. Never enlarging, a large picture shrinks to the area, in whole steps on the side that bends its ratio less.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from lora_trainer.config.build import build
from lora_trainer.data.buckets import assign_buckets

from .conftest import record

SETTINGS = {
    "SD 512": {"resolution": 512},
    "SD 768 x 512, wide": {"resolution": [768, 512], "min_bucket_reso": 320, "max_bucket_reso": 1280},
    "SD 512, never enlarged": {"resolution": 512, "bucket_no_upscale": True},
    "SDXL 1024 by 32": {"resolution": 1024, "min_bucket_reso": 256, "max_bucket_reso": 2048, "bucket_reso_steps": 32},
    "SDXL 1024 by 32, never enlarged": {"resolution": 1024, "max_bucket_reso": 2048, "bucket_reso_steps": 32, "bucket_no_upscale": True},
    "odd limits by 40": {"resolution": 640, "min_bucket_reso": 250, "max_bucket_reso": 1030, "bucket_reso_steps": 40},
}


def groups(wide, high, low, top, step):
    """Every pair of whole steps within the limits that is as large as its area allows, and the base square."""
    low, top = low - low % step, top + -top % step
    sides = range(low, top + 1, step)
    found = set()
    for side in sides:
        other = max((other for other in range(0, top + 1, step) if other * side <= wide * high), default=0)
        if other >= low:
            found.update({(side, other), (other, side)})
    square = max(side for side in range(0, wide + high, step) if side * side <= wide * high)
    return sorted(found | {(square, square)})


def half_up(value):
    return math.floor(value + 0.5)


def nearest(width, height, known):
    """(group, resized): the first of the groups, from narrow to wide, whose ratio is nearest in floating point, as numpy finds it."""
    ratio = width / height
    group = (width, height)
    if group not in known:
        distances = [abs(a / b - ratio) for a, b in known]
        group = known[distances.index(min(distances))]
    by_height = ratio > group[0] / group[1]
    scale = group[1] / height if by_height else group[0] / width
    return group, (half_up(width * scale), half_up(height * scale))


def shrunk(width, height, area, step):
    """(group, resized) of a picture that may not grow."""
    ratio = width / height
    resized = (width, height)
    if width * height > area:
        wide = math.sqrt(area * ratio)
        high = area / wide

        def whole(value):
            return half_up(value) // step * step

        by_width = (whole(wide), whole(whole(wide) / ratio))
        by_height = (whole(whole(high) * ratio), whole(high))
        if 0 in (*by_width, *by_height):
            return None
        if abs(by_width[0] / by_width[1] - ratio) < abs(by_height[0] / by_height[1] - ratio):
            resized = (by_width[0], half_up(by_width[0] / ratio))
        else:
            resized = (half_up(by_height[1] * ratio), by_height[1])
    return (resized[0] // step * step, resized[1] // step * step), resized


@pytest.mark.parametrize("name", SETTINGS)
def test_five_thousand_sizes_are_grouped_resized_and_cut_by_the_rule(name):
    settings = SETTINGS[name]
    data = build({"data": settings}).data
    resolution = settings["resolution"]
    wide, high = resolution if isinstance(resolution, list) else (resolution, resolution)
    step = data.bucket_reso_steps
    known = groups(wide, high, data.min_bucket_reso, data.max_bucket_reso, step)
    draw = random.Random(name)
    sizes = [(draw.randint(64, 4000), draw.randint(64, 4000)) for _ in range(3000)]
    sizes += [(draw.randint(1, 60) * step, draw.randint(1, 60) * step) for _ in range(1500)]
    sizes += [(draw.randint(900, 1100), draw.randint(900, 1100)) for _ in range(500 - len(known))] + known
    checked = 0
    for (width, height), found in zip(sizes, assign_buckets([record(f"{w}x{h}", width=w, height=h) for w, h in sizes], data), strict=True):
        expected = shrunk(width, height, wide * high, step) if data.bucket_no_upscale else nearest(width, height, known)
        if expected is None or 0 in expected[0]:
            continue  # narrower than one step: sd-scripts has no answer
        group, resized = expected
        left, top = (resized[0] - group[0]) // 2, (resized[1] - group[1]) // 2
        assert (found.bucket, found.resized, found.crop) == (group, resized, (left, top, *group)), (width, height)
        checked += 1
    assert checked > (4500 if data.bucket_no_upscale else 4999)


@pytest.mark.parametrize("name", ["SD 512", "SDXL 1024 by 32", "odd limits by 40"])
def test_without_groups_every_picture_covers_the_size_and_loses_only_what_sticks_out(name):
    data = build({"data": {**SETTINGS[name], "enable_bucket": False}}).data
    side = data.resolution
    draw = random.Random(name)
    sizes = [(draw.randint(64, 4000), draw.randint(64, 4000)) for _ in range(2000)]
    for (width, height), found in zip(sizes, assign_buckets([record(f"{w}x{h}", width=w, height=h) for w, h in sizes], data), strict=True):
        exact = Fraction(max(width, height), min(width, height)) * side
        assert found.bucket == (side, side) and min(found.resized) == side and abs(max(found.resized) - exact) <= Fraction(1, 2)
        assert found.crop[:2] == ((found.resized[0] - side) // 2, (found.resized[1] - side) // 2)
