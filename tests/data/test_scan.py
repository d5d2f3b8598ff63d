"""What a folder is taken for, and the verdict on each file in it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.data.sources.assemble import split_validation
from lora_trainer.errors import DatasetError
from lora_trainer.train.inputs.dataset import load_dataset

from .conftest import quartered, record
from .scanning import scan


def keys(found):
    return [one.key for one in found.records]


def told(found):
    return " | ".join(str(message) for message in found.warnings)


def refusal(*args, **named):
    with pytest.raises(DatasetError) as caught:
        scan(*args, **named)
    return caught.value


# --- the three forms of folders ---


def test_a_folder_of_pictures_is_read_in_natural_order(draw, tmp_path):
    for name in ("10.png", "2.png", "1.jpg", "b.webp", "A.bmp"):
        draw(name)
    found = scan(tmp_path, num_repeats=3, class_tokens="girl")
    assert keys(found) == ["1.jpg", "2.png", "10.png", "A.bmp", "b.webp"]
    assert {(one.repeats, one.class_tokens, one.width, one.height) for one in found.records} == {(3, "girl", 64, 48)}
    assert "A folder of pictures (5)" in str(found.summary)


def test_a_parent_of_numbered_folders_takes_repeats_and_words_from_their_names(draw, tmp_path):
    draw("10_sks girl/a.png")
    draw("2_my_style/a.png")
    found = scan(tmp_path, num_repeats=7)
    assert [(one.key, one.repeats, one.class_tokens) for one in found.records] == [
        ("2_my_style/a.png", 2, "my_style"),
        ("10_sks girl/a.png", 10, "sks girl"),
    ]
    assert "2_my_style, 10_sks girl" in str(found.summary)


def test_what_stands_beside_numbered_folders_is_left_aside_and_named(draw, tmp_path):
    for name in ("10_sks/a.png", "more/b.png", "0_zero/c.png", "_5/d.png", "beside.png", "x_5/e.png", "12/f.png"):
        draw(name)
    found = scan(tmp_path)
    assert keys(found) == ["10_sks/a.png"]
    for name in ("more", "0_zero", "_5", "x_5", "12"):
        assert name in told(found)
    assert "beside the numbered folders are left aside (1)" in told(found)


def test_a_parent_of_folders_without_numbers_uses_them_alike(draw, tmp_path):
    draw("front/a.png")
    draw("back/a.png")
    found = scan(tmp_path, num_repeats=4)
    assert [(one.key, one.repeats, one.class_tokens) for one in found.records] == [("back/a.png", 4, ""), ("front/a.png", 4, "")]
    assert "back, front" in str(found.summary)


def test_one_numbered_folder_itself_is_understood(draw, tmp_path):
    draw("10_sks girl/a.png")
    found = scan(tmp_path / "10_sks girl", num_repeats=1)
    assert (found.records[0].key, found.records[0].repeats, found.records[0].class_tokens) == ("a.png", 10, "sks girl")
    assert '10 repeats and the words "sks girl"' in str(found.summary)


def test_a_folder_whose_name_is_only_a_number_has_no_repeats_in_it(draw, tmp_path):
    draw("2024/a.png")
    assert scan(tmp_path / "2024").records[0].repeats == 1


def test_a_number_that_is_rather_a_year_is_pointed_out(draw, tmp_path):
    draw("2024_summer/a.png")
    assert "2024 repeats" in told(scan(tmp_path / "2024_summer"))


def test_class_words_that_are_given_win_over_the_folders(draw, tmp_path):
    draw("10_sks girl/a.png")
    assert scan(tmp_path, class_tokens="dog").records[0].class_tokens == "dog"


def test_folders_inside_a_folder_of_pictures_and_hidden_ones_are_not_entered(draw, tmp_path):
    for name in ("a.png", "inner/b.png", ".hidden/c.png", ".d.png", "__MACOSX/e.png"):
        draw(name)
    found = scan(tmp_path)
    assert keys(found) == ["a.png"]
    assert "inner" in told(found) and "hidden" not in told(found)


def test_a_path_with_spaces_umlauts_chinese_and_brackets_is_read(draw, tmp_path):
    draw("数据 集/ü {x}/[1]/5_米 卡/图 [1] {a}.png", caption="一个女孩")
    found = scan(tmp_path / "数据 集/ü {x}/[1]")
    assert (found.records[0].key, found.records[0].class_tokens) == ("5_米 卡/图 [1] {a}.png", "米 卡")
    assert found.records[0].caption == "一个女孩" and "5_米 卡" in str(found.summary)
    assert "ü {x}" in refusal(tmp_path / "数据 集/ü {x}").text()


def test_two_unicode_spellings_of_a_name_are_one_key(draw, tmp_path):
    import unicodedata

    draw(unicodedata.normalize("NFD", "ü.png"))
    assert keys(scan(tmp_path)) == [unicodedata.normalize("NFC", "ü.png")]


# --- folders that cannot be ---


def test_an_empty_path_never_means_the_working_directory(draw, tmp_path, monkeypatch):
    draw("a.png")
    monkeypatch.chdir(tmp_path)
    for nothing in (Path(), Path(), Path("  ")):
        assert "no folder of pictures is given" in refusal(nothing).text()


@pytest.mark.parametrize("field", ["data.train_data_dir", "validate.data_dir"])
def test_a_missing_folder_names_the_path_and_the_field(tmp_path, field):
    error = refusal(tmp_path / "none", field=field)
    assert str(tmp_path / "none") in error.text() and error.problems[0].path == field and error.problems[0].fix.text()


def test_a_file_an_empty_folder_and_a_drive_are_refused_by_what_they_are(draw, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is a file" in refusal(draw("a.png")).text()
    assert "holds no pictures" in refusal(tmp_path / "empty").text()
    assert "whole drive" in refusal(Path(tmp_path.anchor)).text()


def test_the_webuis_own_folder_is_refused(draw, tmp_path):
    draw("html/card.png")
    (tmp_path / "modules").mkdir()
    (tmp_path / "webui.py").touch()
    assert "WebUI's own folder" in refusal(tmp_path).text()


def test_a_folder_one_too_high_is_answered_with_the_right_ones(draw, tmp_path):
    draw("train/10_sks/a.png")
    draw("val/10_sks/a.png")
    assert "train, val" in refusal(tmp_path).text()


def test_a_folder_of_nothing_but_broken_files_names_the_first_and_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    text = refusal(tmp_path).text()
    assert "a.png" in text and "empty" in text


@pytest.mark.skipif(os.name == "nt", reason="rights are different on Windows")
def test_a_folder_of_somebody_else_is_named(draw, tmp_path):
    draw("mine/a.png")
    (tmp_path / "mine").chmod(0)
    for folder in tmp_path.parents:
        if folder != Path("/") and folder.owner() == "root":
            folder.chmod(folder.stat().st_mode | 0o011)
    code = (
        "import os, sys; from pathlib import Path; from tests.data.scanning import scan\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: scan(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "mine")], capture_output=True, encoding="utf-8", check=False)
    (tmp_path / "mine").chmod(0o755)
    assert done.stdout.startswith("DatasetError") and str(tmp_path / "mine") in done.stdout, done.stderr


# --- files ---


def test_every_kind_of_bad_file_has_its_verdict_and_reason(draw, tmp_path):
    draw("good.png")
    draw("tiny.png", (31, 200))
    draw("out.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    (tmp_path / "film.mp4").write_bytes(b"x")
    (tmp_path / "bomb.png").write_bytes(_png_header(60000, 60000))
    found = {one.key: one for one in scan(tmp_path, leave_out=["out.png"]).records}
    assert {key: one.verdict for key, one in found.items()} == {
        "good.png": "used",
        "tiny.png": "too-small",
        "out.png": "left-out",
        "empty.png": "broken",
        "text.jpg": "not-a-picture",
        "cut.png": "broken",
        "film.mp4": "not-a-picture",
        "bomb.png": "broken",
    }
    assert all(one.usable == (one.reason is None) == (key == "good.png") for key, one in found.items())
    assert "31 x 200" in str(found["tiny.png"].reason) and "pixels" in str(found["bomb.png"].reason)


def _png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("turn, size", [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64)), (5, (48, 64))])
def test_a_turned_picture_has_the_size_that_it_is_seen_in(draw, tmp_path, name, turn, size):
    exif = Image.Exif()
    exif[0x0112] = turn
    draw(name, exif=exif)
    found = scan(tmp_path).records[0]
    assert (found.width, found.height) == size and (found.notes == ("rotated",)) == (turn != 1)


def test_a_png_that_tells_its_turn_behind_the_pixels_is_turned_too(tmp_path):
    exif, plain = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    quartered((64, 48)).save(plain, "PNG")
    data, body = plain.getvalue(), exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert (scan(tmp_path).records[0].width, scan(tmp_path).records[0].notes) == (48, ("rotated",))


def test_transparency_is_noted_and_a_wrong_ending_is_told(draw, tmp_path):
    draw("a.png", mode="RGBA")
    draw("b.png", mode="P", transparency=0)
    quartered((64, 48)).save(tmp_path / "c.jpg", "PNG")
    found = scan(tmp_path)
    assert [one.notes for one in found.records] == [("transparent",), ("transparent",), ("wrong-ending",)]
    assert "another kind than their ending" in told(found) and "c.jpg" in told(found) and "a.png" not in told(found)


# --- captions beside ---


def test_txt_and_caption_are_both_found_whatever_their_case(draw, tmp_path):
    for name in ("a.png", "b.PNG", "c.jpg"):
        draw(name)
    (tmp_path / "a.caption").write_text("one", encoding="utf-8")
    (tmp_path / "B.TXT").write_text("two", encoding="utf-8")
    found = scan(tmp_path)
    assert [one.caption for one in found.records] == ["one", "two", ""]
    assert [one.has_caption for one in found.records] == [True, True, False]
    assert "2 of 3 pictures have a caption" in told(found)


def test_with_both_the_txt_is_used_and_it_is_told(draw, tmp_path):
    draw("a.png", caption="from txt")
    (tmp_path / "a.caption").write_text("from caption", encoding="utf-8")
    found = scan(tmp_path)
    assert found.records[0].caption == "from txt" and ".txt is used (1): a.png" in told(found)
    assert scan(tmp_path, caption_extension=".caption").records[0].caption == "from caption"


def test_captions_with_another_ending_than_the_chosen_one_are_pointed_out(draw, tmp_path):
    draw("a.png", caption="x")
    found = scan(tmp_path, caption_extension="caption")
    assert not found.records[0].has_caption and "another ending than .caption" in told(found)


def test_lines_that_are_not_used_and_empty_files_are_told(draw, tmp_path):
    draw("a.png", caption="one\ntwo\n")
    draw("b.png", caption=" \n")
    found = scan(tmp_path)
    assert "only the first is used (1): a.png" in told(found) and "Empty caption files (1): b.png" in told(found)


def test_that_captions_override_the_folders_words_is_told(draw, tmp_path):
    draw("10_sks girl/a.png", caption="x")
    assert "(sks girl) are not used" in told(scan(tmp_path))
    draw("5_dog/a.png")
    assert "dog" not in told(scan(tmp_path)).partition("not used")[0]


# --- validation ---


def test_the_held_back_part_is_at_least_one_never_all_and_the_same_each_time():
    records = tuple(record(f"{number}.png") for number in range(20))
    for fraction, count in [(0.0, 0), (0.01, 1), (0.25, 5), (0.5, 10)]:
        held = [one.key for one in split_validation(records, fraction, seed=1) if one.validation]
        assert len(held) == count
        assert held == [one.key for one in split_validation(records, fraction, seed=1) if one.validation]
    assert [one.validation for one in split_validation(records[:1], 0.5, seed=1)] == [False]
    assert sum(one.validation for one in split_validation(records[:2], 0.5, seed=1)) == 1


def test_another_seed_holds_back_others_and_a_new_picture_moves_few():
    records = tuple(record(f"{number}.png") for number in range(40))

    def held(records, seed):
        return {one.key for one in split_validation(records, 0.25, seed) if one.validation}

    assert held(records, 1) != held(records, 2)
    assert len(held(records, 1) - held((*records, record("new.png")), 1)) <= 1


def test_unusable_pictures_are_never_held_back():
    records = (record("a.png"), record("b.png"), *(record(f"x{n}.png", usable=False) for n in range(8)))
    assert all(one.usable for one in split_validation(records, 0.5, 1) if one.validation)


def test_the_pictures_that_ship_are_read_as_they_should_be():
    found = scan(assets.toy_pictures() / "crescent" / "train")
    assert len(found.used) == len(found.records) == 12 and {one.repeats for one in found.records} == {10}
    assert {(one.width, one.height) for one in found.records} == {(64, 64)} and all("sks crescent" in one.caption for one in found.records)


def test_scanning_needs_no_torch():
    rooms = "lora_trainer.data.sources.scan, lora_trainer.data.buckets, lora_trainer.data.batch_sampler"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture_with_the_place_of_a_face_in_its_name_shares_the_caption(tmp_path, draw):
    draw("girl_20_30_10_12.png")
    draw("girl_1.png")
    (tmp_path / "girl.txt").write_text("a girl", encoding="utf-8")
    assert {one.key: one.caption for one in scan(tmp_path).records} == {"girl_20_30_10_12.png": "a girl", "girl_1.png": ""}
    (tmp_path / "girl_20_30_10_12.txt").write_text("her face", encoding="utf-8")
    assert {one.key: one.caption for one in scan(tmp_path).records}["girl_20_30_10_12.png"] == "her face"


@pytest.mark.parametrize("name", ["C.png.txt", "c.JSON", "C.txt.txt", "C.tags", "C.text"])
def test_a_file_that_looks_like_a_caption_is_named(tmp_path, name):
    Image.new("RGB", (64, 64)).save(tmp_path / "C.png")
    (tmp_path / name).write_text("a vase", encoding="utf-8")
    told = [message.text() for message in scan(tmp_path).warnings]
    assert told == [f"{name} beside C.png looks like its caption and is not read: call it C.txt."]
    (tmp_path / "C.txt").write_text("a vase", encoding="utf-8")
    assert scan(tmp_path).warnings == ()


def test_several_files_that_look_like_captions_are_told_together(tmp_path):
    for stem in "AB":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.text").write_text("a vase", encoding="utf-8")
    (told,) = (message.text() for message in scan(tmp_path).warnings)
    assert told.startswith("A.text, B.text look like the captions of pictures and are not read (2 files)")


def test_json_files_beside_pictures_are_named_and_no_other_name_is_advised(tmp_path):
    """Their text is no caption: under the name A.txt it would be trained with its brackets."""
    for stem in "AB":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.json").write_text('{"caption": "a vase", "tags": ["vase"]}', encoding="utf-8")
    (told,) = (message.text() for message in scan(tmp_path).warnings)
    assert told.startswith("A.json, B.json look like the captions of pictures and are not read (2 files in JSON)")
    assert "call" not in told and "write each caption into a .txt" in told


def test_a_list_of_captions_among_the_pictures_is_named_and_other_json_is_not(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "p0.png")
    (tmp_path / "settings.json").write_text('{"width": 5}', encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "p0.png", "text": "a vase"}', encoding="utf-8")
    (told,) = (message.text() for message in scan(tmp_path).warnings)
    assert told == "metadata.jsonl looks like the captions and is not read: give it as the metadata file (data.in_json)."


def test_a_nul_in_a_caption_is_named_as_that_and_left_out(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"a cat\0, hat")
    found = scan(tmp_path)
    assert found.records[0].caption == "a cat, hat" and "NUL" in found.warnings[0].text()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_a_picture_whose_name_is_no_text_is_left_out_with_the_remedy(draw, tmp_path: Path):
    """Its name could seed no random number, and stand in no log and no list of pictures."""
    draw("a.png", caption="x")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    Path(odd).write_bytes((tmp_path / "a.png").read_bytes())
    found = scan(tmp_path)
    assert [(record.usable, record.notes) for record in found.records if record.path == Path(odd)] == [(False, ("broken",))]
    reasons = [record.reason for record in found.records if record.reason is not None]
    assert [reason.text() for reason in reasons] == ["Its name holds bytes that are no text: rename it."]
    config = build({"data": {"train_data_dir": str(tmp_path), "resolution": 64, "batch_size": 2}})
    dataset = load_dataset(config)
    assert [record.key for record in dataset.train_records] == ["a.png"]
