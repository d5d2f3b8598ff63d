"""Masks in four conventions: found, counted, brought to the size of latents."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from PIL import Image, ImageDraw

from lora_trainer.config.schema import DataConfig
from lora_trainer.data.pictures.masks import MaskCache, assign_masks
from lora_trainer.errors import DatasetError

from .conftest import noise
from .encoder import placed
from .scanning import scan

BESIDE = DataConfig(masks_beside=True)
ALPHA = DataConfig(alpha_mask=True)


def left_half(size=(64, 64)) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, size[0] // 2 - 1, size[1]), fill=255)
    return mask


def found(folder, data: DataConfig, crops=(), **options):
    records, told = assign_masks(placed(folder, crops, **options), lambda record: data)
    return records, " ".join(message.text() for message in told)


def weights(record, data, **how):
    return MaskCache().get(record, data, **{"flipped": False, **how})


@pytest.fixture(params=["beside", "folder", "folder inside", "alpha"])
def convention(request, tmp_path):
    """(folder of three pictures, options) with a mask over the left half of a.png in each of the four ways."""
    folder = tmp_path / "数据 [1]"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.jpg")):
        noise((64, 64), seed).save(folder / name)
    if request.param == "beside":
        left_half().save(folder / "a-masklabel.png")
        return folder, BESIDE
    if request.param == "alpha":
        picture = noise((64, 64), 0)
        picture.putalpha(left_half())
        picture.save(folder / "a.png")
        return folder, ALPHA
    masks = tmp_path / "masks" / ("inside" if "inside" in request.param else "")
    masks.mkdir(parents=True)
    Image.merge("RGB", (left_half(), Image.new("L", (64, 64), 255), Image.new("L", (64, 64), 0))).save(masks / "A.PNG")  # red counts
    return folder, DataConfig(mask_dir=str(tmp_path / "masks"))


def test_each_convention_gives_the_same_mask(convention):
    folder, data = convention
    records, told = found(folder, data)
    assert len(records) == 3 and "1 of 3 pictures have masks" in told and "50.0 %" in told
    mask = weights(records[0], data)
    assert mask.shape == (8, 8) and mask.dtype == np.float32
    assert np.array_equal(mask, np.repeat([[1, 1, 1, 1, 0, 0, 0, 0]], 8, axis=0))
    assert np.array_equal(weights(records[0], data, flipped=True), mask[:, ::-1])
    assert weights(records[1], data) is None and weights(records[2], data) is None


@pytest.mark.parametrize(
    "data, named", [(BESIDE, "NAME-masklabel.png"), (ALPHA, "transparency"), (DataConfig(mask_dir="m"), "names of the pictures")]
)
def test_masks_that_are_asked_for_and_not_there_stop_the_run_with_the_remedy(tmp_path, data, named):
    (tmp_path / "p").mkdir(), (tmp_path / "m").mkdir()
    noise((64, 64), 0).save(tmp_path / "p" / "a.png")
    left_half().save(tmp_path / "m" / "z.png")
    data = attrs.evolve(data, mask_dir=str(tmp_path / "m") if data.mask_dir else "")
    with pytest.raises(DatasetError) as caught:
        found(tmp_path / "p", data)
    assert named in caught.value.text() and caught.value.problems[0].path.startswith("data.")


def test_a_folder_of_masks_that_is_not_there_is_named(tmp_path):
    noise((64, 64), 0).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="no folder of masks"):
        found(tmp_path, DataConfig(mask_dir=str(tmp_path / "gone")))


def test_masks_beside_pictures_are_never_trained_on_and_unused_ones_are_told_of(tmp_path):
    noise((64, 64), 0).save(tmp_path / "a.png")
    left_half().save(tmp_path / "a-masklabel.png")
    noise((64, 64), 1).save(tmp_path / "b-masklabel.png")  # nobody's mask: a picture with an odd name
    assert [record.key for record in scan(tmp_path).records] == ["a.png", "b-masklabel.png"]
    records, told = found(tmp_path, DataConfig())
    assert "masks_beside = true" in told and all(record.mask_path is None for record in records)


def test_grey_masks_count_partly_unless_there_is_a_threshold(tmp_path):
    noise((64, 64), 0).save(tmp_path / "a.png")
    Image.fromarray(np.repeat(np.array([[51, 102, 153, 255]], np.uint8), 64, 0).repeat(16, 1)).save(tmp_path / "a-masklabel.png")
    record = found(tmp_path, BESIDE)[0][0]
    assert weights(record, BESIDE)[0].tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 1, 1])
    hard = attrs.evolve(BESIDE, mask_threshold=0.5)
    assert weights(record, hard)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    lifted = attrs.evolve(hard, mask_min_value=0.1)
    assert weights(record, lifted)[0].tolist() == pytest.approx([0.1] * 4 + [1] * 4)


def test_a_latent_at_the_edge_of_a_mask_counts_by_its_area(tmp_path):
    noise((64, 64), 0).save(tmp_path / "a.png")
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 11, 63), fill=255)
    mask.save(tmp_path / "a-masklabel.png")
    assert weights(found(tmp_path, BESIDE)[0][0], BESIDE)[0].tolist() == pytest.approx([1, 0.5, 0, 0, 0, 0, 0, 0], abs=0.01)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_any_kind_and_size_are_read(tmp_path, mode):
    noise((128, 128), 0).save(tmp_path / "a.png")
    mask = left_half((32, 32))
    if mode == "I;16":
        mask = Image.fromarray(np.asarray(mask, dtype=np.uint16) * 257)
    else:
        mask = mask.convert(mode)
    mask.save(tmp_path / "a-masklabel.png")
    assert weights(found(tmp_path, BESIDE)[0][0], BESIDE)[0].tolist() == pytest.approx([1, 1, 1, 1, 0, 0, 0, 0], abs=0.01)


def test_a_mask_is_cut_and_turned_as_its_picture(tmp_path):
    noise((200, 100), 0).save(tmp_path / "a.png")  # cut square: 50 pixels go on each side
    mask = Image.new("L", (200, 100), 0)
    ImageDraw.Draw(mask).rectangle((100, 0, 149, 99), fill=255)
    mask.save(tmp_path / "a-masklabel.png")
    record = found(tmp_path, BESIDE, enable_bucket=False)[0][0]
    assert weights(record, BESIDE)[0].round(1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    framed = found(tmp_path, BESIDE, ("a.png=0.5,0,1,1",), enable_bucket=False)[0][0]
    assert weights(framed, BESIDE)[0].round(1).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    moved = attrs.evolve(record, crop=(0, 0, 64, 64))
    assert weights(moved, BESIDE)[0].round(1).tolist() == [0] * 8


def test_an_upright_picture_with_alpha_turned_by_its_camera_has_its_mask_upright(tmp_path):
    picture, exif = noise((96, 64), 0), Image.Exif()
    mask = Image.new("L", (96, 64), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 47, 63), fill=255)
    picture.putalpha(mask)
    exif[0x0112] = 3
    picture.save(tmp_path / "a.png", exif=exif)
    record = found(tmp_path, ALPHA, resolution=64, min_bucket_reso=32)[0][0]
    row = weights(record, ALPHA)[0]
    assert row[0] == 0 and row[-1] == 1


def test_black_masks_are_named(tmp_path):
    for name in ("a", "b"):
        noise((64, 64), ord(name)).save(tmp_path / f"{name}.png")
    left_half().save(tmp_path / "a-masklabel.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "b-masklabel.png")
    _, told = found(tmp_path, BESIDE)
    assert "black all over" in told and "b.png" in told and "25.0 %" in told


def test_a_picture_whose_mask_cannot_be_read_is_left_out_and_named(tmp_path):
    for name in ("a", "b"):
        noise((64, 64), ord(name)).save(tmp_path / f"{name}.png")
    left_half().save(tmp_path / "a-masklabel.png")
    (tmp_path / "b-masklabel.png").write_bytes(b"no picture")
    records, _ = found(tmp_path, BESIDE)
    assert [record.usable for record in records] == [True, False] and "b-masklabel.png" in records[1].reason.text()


def test_alpha_that_is_opaque_is_no_mask(tmp_path):
    for name in ("a", "b"):
        picture = noise((64, 64), ord(name))
        picture.putalpha(left_half() if name == "a" else 255)
        picture.save(tmp_path / f"{name}.png")
    from lora_trainer.data.pictures.decode_check import check_all

    records, told = assign_masks(check_all(placed(tmp_path)), lambda record: ALPHA)
    assert [record.alpha_mask for record in records] == [True, False] and "1 of 2" in told[0].text()
