"""The closer look: damaged behind the header, really transparent, near copies."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from lora_trainer import assets, file_hashes
from lora_trainer.data.pictures import decode_check
from lora_trainer.data.pictures.decode_check import check_and_mark_copies, check_decodes

from .conftest import noise
from .scanning import scan


def verdicts(folder):
    return {one.key: one.verdict for one in check_and_mark_copies(scan(folder).records)}


def test_a_file_that_is_cut_off_behind_its_header_is_found_and_named(tmp_path):
    for name in ("a.png", "b.jpg", "c.png"):
        noise((300, 300), ord(name[0])).save(tmp_path / name)
    for name in ("a.png", "b.jpg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    found = scan(tmp_path).records
    assert all(one.usable for one in found)  # the header is whole
    seen = list(check_and_mark_copies(found))
    assert [one.verdict for one in seen] == ["broken", "broken", "used"] and [one.usable for one in seen] == [False, False, True]
    assert "damaged" in str(seen[0].reason)


def test_a_file_that_is_gone_is_broken_and_does_not_stop_the_others(tmp_path):
    for number in range(3):
        noise((64, 64), number).save(tmp_path / f"{number}.png")
    records = scan(tmp_path).records
    (tmp_path / "1.png").unlink()
    assert [one.verdict for one in check_and_mark_copies(records)] == ["used", "broken", "used"]


def test_an_opaque_picture_with_an_alpha_channel_is_not_called_transparent(tmp_path):
    noise((64, 64), 1).convert("RGBA").save(tmp_path / "opaque.png")
    half = noise((64, 64), 2).convert("RGBA")
    half.putalpha(100)
    half.save(tmp_path / "see.png")
    assert verdicts(tmp_path) == {"opaque.png": "used", "see.png": "transparent"}


def test_copies_are_found_in_another_size_kind_and_quality(tmp_path):
    picture = noise((640, 480), 7)
    picture.save(tmp_path / "1.png")
    picture.resize((320, 240)).save(tmp_path / "2.jpg", quality=50)
    picture.crop((2, 1, 638, 479)).save(tmp_path / "3.webp", quality=60)
    picture.convert("RGBA").save(tmp_path / "4.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "5.png")
    noise((640, 480), 8).save(tmp_path / "6.png")
    found = {one.key: one for one in check_and_mark_copies(scan(tmp_path).records)}
    assert {key for key, one in found.items() if "copy" in one.notes} == {"2.jpg", "3.webp", "4.png"}
    assert "1.png" in str(found["2.jpg"].reason) and found["2.jpg"].usable


@pytest.mark.parametrize("concept", ["crescent", "star"])
def test_pictures_of_one_thing_are_not_called_copies(concept):
    assert set(verdicts(assets.toy_pictures() / concept / "train").values()) == {"used"}


def test_flat_pictures_of_different_colours_are_not_copies(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "red")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    assert verdicts(tmp_path) == {"a.png": "used", "b.png": "used", "c.png": "copy"}


def test_a_file_that_was_replaced_is_looked_at_again(tmp_path):
    noise((64, 64), 1).save(tmp_path / "a.png")
    record = scan(tmp_path).records[0]
    assert check_decodes(record).usable
    (tmp_path / "a.png").write_bytes(b"\x89PNG damaged")
    os.utime(tmp_path / "a.png", (1, 1))
    assert check_decodes(record).verdict == "broken"


def test_a_picture_found_whole_is_not_decoded_by_the_next_process_unless_it_was_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "FRESH", 0)  # else a file must be two seconds old to be believed
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()
    noise((64, 64), 1).save(folder / "a.png")
    noise((64, 64), 2).convert("RGBA").save(folder / "b.png")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:-100])
    before = [(one.key, one.verdict) for one in decode_check.check_all(scan(folder).records, cache)]
    assert before == [("a.png", "used"), ("b.png", "used"), ("c.png", "broken")]

    decoded = []
    look = decode_check._decode
    monkeypatch.setattr(decode_check, "_decode", lambda path: decoded.append(path.name) or look(path))
    assert [(one.key, one.verdict) for one in decode_check.check_all(scan(folder).records, cache)] == before
    assert decoded == ["c.png"]  # what is broken may have been mended by other means than its bytes: a plugin
    noise((64, 64), 3).save(folder / "a.png")
    decode_check.check_all(scan(folder).records, cache)
    assert "a.png" in decoded and "b.png" not in decoded
