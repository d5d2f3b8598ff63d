"""What requests may name: paths of other computers and devices, links out of the allowed folders, and how much is sent."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.data.captions import CaptionRules, plain_caption
from lora_trainer.data.records import ImageRecord
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.path_kinds import is_device_path, is_network_path
from lora_trainer.train.previews.preview_prompts import _parse_options
from tests.api.conftest import small_config

NETWORK = r"\\nas.example\photos"


@pytest.mark.parametrize("path", ["thumbnail", "folders"])
def test_a_path_of_another_computer_is_only_looked_at_where_the_config_names_it(server, path):
    def status(text):
        return server.get(path, path=text).status_code

    assert status(NETWORK + r"\mika\1.png") == 403
    server.post("pictures", {"config": small_config(NETWORK + r"\mika")})
    assert status(NETWORK + r"\mika\1.png") == 404
    assert status("//NAS.example/photos/mika/1.png") == 404
    for other in (NETWORK + r"\other\1.png", NETWORK + r"\mika\..\other\1.png", r"\\evil.example\photos\mika\1.png", r"\\?\UNC\evil\x"):
        assert status(other) == 403, other


def test_a_server_on_the_network_looks_at_no_other_computer_at_all(closed_server, monkeypatch):
    seen = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **options: seen.append(str(path)) or stat(path, *args, **options))
    assert closed_server.post("pictures", {"config": small_config(NETWORK)}).status_code == 403
    assert closed_server.get("thumbnail", path=NETWORK + r"\1.png").status_code == 403
    assert [path for path in seen if "nas.example" in path] == []


def test_network_and_device_paths_are_told_by_their_text():
    assert all(map(is_network_path, (NETWORK, "//nas/x", r"/\nas\x", r"\/nas", r"\\?\C:\x", r"\\.\COM1")))
    assert not any(map(is_network_path, ("/home/x", r"C:\x", r"\x", "a//b", "")))
    assert all(
        map(
            is_device_path,
            ("nul", r"C:\x\CON.png", "com1", "LPT9.txt", "aux ", r"x\prn\y.png", r"\??\C:\x", "/proc/self/mem", "/dev/zero", "/sys"),
        )
    )
    assert not any(
        map(is_device_path, ("/dev/shm/pictures", "console.png", "comb1.png", "null.png", "/home/auxiliary/a.png", "/processing/a.png"))
    )


@pytest.fixture
def linked(closed_server, pictures, tmp_path):
    """A folder inside the allowed one, and a picture and a text outside."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "secret.png")
    (tmp_path / "secret.txt").write_text("a secret", encoding="utf-8")
    return pictures


@pytest.mark.parametrize(
    ("link", "to"), [("a.png", "secret.png"), ("crescent_01.txt", "secret.txt"), ("10_more", "."), ("a-masklabel.png", "secret.png")]
)
@pytest.mark.parametrize("path", ["pictures", "captions", "batches", "check", "wizard", "runs"])
def test_a_link_out_of_the_allowed_folders_is_not_read_by_a_server_on_the_network(closed_server, linked, tmp_path, link, to, path):
    body = {"config": small_config(linked), "subject": "object"}
    (linked / link).unlink(missing_ok=True)
    (linked / link).symlink_to((tmp_path / to).resolve())
    answer = closed_server.post(path, body)
    problem = answer.json()["problems"][0]
    assert answer.status_code == 403 and problem["path"] == "data.train_data_dir"
    assert link in problem["message"] and "--allow-path" in problem["fix"] and "--lora-trainer" not in problem["fix"]


def test_a_link_within_the_allowed_folders_is_read(closed_server, linked):
    Image.new("RGB", (64, 64), "blue").save(linked.parent / "more.png")
    folder = next(linked.glob("*_*"), linked)
    (folder / "more.png").symlink_to(linked.parent / "more.png")
    pictures = closed_server.post("pictures", {"config": small_config(linked)}).json()["pictures"]
    assert "more.png" in [picture["name"] for picture in pictures]


@pytest.mark.parametrize("option", ["data__mask_dir", "data__reg_data_dir", "validate__data_dir"])
def test_links_in_every_folder_of_pictures_are_looked_at(closed_server, linked, tmp_path, option):
    folder = linked.parent / "others" / "deeper"
    folder.mkdir(parents=True)
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    refused = closed_server.post("pictures", {"config": small_config(linked, **{option: str(folder.parent)})})
    assert refused.status_code == 403 and refused.json()["problems"][0]["path"] == option.replace("__", ".")


def test_the_list_of_pictures_holds_the_start_of_a_caption_and_says_which_are_too_long(server, pictures):
    first, second = sorted(pictures.rglob("*.png"))[:2]
    names = [first.name, second.name]
    first.with_suffix(".txt").write_text("word, " * 15_000, encoding="utf-8")
    second.with_suffix(".txt").write_text("word, " * 2_000_000, encoding="utf-8")
    answer = server.post("pictures", {"config": small_config(pictures)})
    assert len(answer.content) < 50_000
    shown = {picture["name"]: picture for picture in answer.json()["pictures"]}
    assert shown[names[0]]["has_caption"] and shown[names[0]]["caption"].startswith("word, ")
    assert not shown[names[1]]["has_caption"]
    assert any("100 KB" in warning and names[1] in warning for warning in answer.json()["warnings"])


def test_a_large_file_of_a_run_is_not_sent(server):
    folder = RunFolder.create(server.host.paths().runs_dir, "moon")
    with (folder.path / "state.safetensors").open("wb") as file:
        file.truncate(1 << 30)
    refused = server.get("runs/moon/files/state.safetensors")
    assert refused.status_code == 400 and "64 MB" in refused.json()["problems"][0]["message"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_fifo_among_the_files_of_a_run_is_none(server):
    folder = RunFolder.create(server.host.paths().runs_dir, "moon")
    os.mkfifo(folder.path / "pipe")
    assert server.get("runs/moon/files/pipe").status_code == 404


@pytest.mark.parametrize("caption", ["{a" * 300_000, "{a" * 300_000 + "}"])
def test_brackets_that_never_close_take_linear_time(caption):
    record = ImageRecord(Path("a.png"), "a.png", 64, 64, 1, "", Path("a.txt"), caption)
    begun = time.thread_time()
    plain_caption(record, CaptionRules(wildcard=True))
    assert time.thread_time() - begun < 5.0, "0.2 s were measured, and an hour where each bracket searches to the end"


def test_a_prompt_of_spaces_takes_linear_time():
    begun = time.thread_time()
    assert _parse_options("a" + " " * 300_000 + "b --n c")["n"] == "c"
    assert time.thread_time() - begun < 5.0


def test_the_list_of_captions_holds_the_start_of_long_ones_which_the_page_cannot_overwrite(server, pictures):
    for picture in pictures.rglob("*.png"):
        picture.with_suffix(".txt").write_text(f"{picture.stem} " * 8000, encoding="utf-8")
    next(iter(sorted(pictures.rglob("*.png")))).with_suffix(".txt").write_text("a crescent, red", encoding="utf-8")
    answer = server.post("captions", {"config": small_config(pictures)})
    shown = answer.json()["pictures"]
    assert len(answer.content) < 20_000 * len(shown)
    assert [caption["is_cut"] for caption in shown] == [False, *[True] * (len(shown) - 1)]
    assert shown[0]["raw"] == "a crescent, red" and shown[1]["tokens"] > shown[1]["limit"]


def test_a_caption_file_that_is_a_link_out_of_the_allowed_folders_is_neither_read_nor_replaced(closed_server, linked, tmp_path):
    picture = next(linked.rglob("*.png"))
    caption = picture.with_suffix(".txt")
    caption.unlink(missing_ok=True)
    caption.symlink_to(tmp_path / "secret.txt")
    refused = closed_server.post("caption", {"path": str(picture), "text": "x"})
    assert refused.status_code == 403 and "a secret" not in refused.text
    assert (tmp_path / "secret.txt").read_text(encoding="utf-8") == "a secret" and caption.is_symlink()


def test_the_folder_list_counts_nothing_behind_a_link_out_of_the_allowed_folders(closed_server, linked, tmp_path):
    (tmp_path / "private").mkdir()
    (linked / "private").symlink_to(tmp_path / "private")
    (linked / "own").mkdir()
    names = [folder["name"] for folder in closed_server.get("folders", path=str(linked)).json()["folders"]]
    assert "own" in names and "private" not in names


def test_a_link_to_a_folder_that_no_scan_reads_keeps_nobody_from_the_pictures(closed_server, linked, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "more.png").symlink_to(tmp_path / "secret.png")
    (linked / "others").symlink_to(tmp_path / "others")
    answer = closed_server.post("pictures", {"config": small_config(linked)})
    assert answer.status_code == 200
    assert {"more.png", "secret.png"}.isdisjoint(picture["name"] for picture in answer.json()["pictures"])
