"""Pictures that are added to a folder that is there, and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.conftest import Server


def send(server: Server, folder: Path, name: str, content: bytes) -> dict:
    answer = server.client.post("folders", params={"path": str(folder), "file": name}, content=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def take_back(server: Server, *paths: object) -> dict:
    return server.client.post("uploads", json={"take_back": [str(path) for path in paths]}).json()


def test_a_picture_is_added_beside_the_others_and_replaces_none(server: Server, tmp_path: Path):
    folder = tmp_path / "mika"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"old")
    assert Path(send(server, folder, "b.png", b"new")["path"]) == folder / "b.png"
    assert Path(send(server, folder, "a.png", b"other")["path"]) == folder / "a (2).png"
    assert send(server, folder, "a.png", b"old")["duplicate"] is True
    assert sorted(path.name for path in folder.iterdir()) == ["a (2).png", "a.png", "b.png"]
    assert (folder / "a.png").read_bytes() == b"old"


def test_only_what_was_sent_and_is_as_it_was_sent_is_taken_back(server: Server, tmp_path: Path):
    folder = tmp_path / "mika"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"old")
    (folder / "c.png").write_bytes(b"here before")
    added, edited = send(server, folder, "a.png", b"other")["path"], send(server, folder, "b.txt", b"words")["path"]
    there = send(server, folder, "c.png", b"here before")["path"]
    Path(edited).write_bytes(b"better words")
    assert take_back(server, added, edited, there, folder / "a.png", "/etc/hostname", "no such file") == {
        "removed": [added],
        "kept": [edited],
    }
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.txt", "c.png"]
    for odd in ("\ud800", "a\0b", "x" * 5000, 7, None):
        assert server.client.post("uploads", json={"take_back": [odd]}).status_code < 500


def test_a_new_folder_of_which_all_is_taken_back_is_gone(server: Server):
    path = server.client.post("uploads/moon", params={"file": "x.png"}, content=b"a").json()["path"]
    assert take_back(server, path)["removed"] == [path] and not Path(path).parent.exists()
    assert take_back(server, path)["removed"] == []


@pytest.mark.parametrize(
    ("path", "file", "status"), [("none", "x.png", 404), ("", "x.png", 404), (".", "../x.png", 400), (".", "x.exe", 400)]
)
def test_what_is_no_folder_or_no_picture_is_refused(server: Server, tmp_path: Path, path: str, file: str, status: int):
    answer = server.client.post("folders", params={"path": str(tmp_path / path) if path else "", "file": file}, content=b"x")
    assert answer.status_code == status and not (tmp_path.parent / "x.png").exists()


def test_nothing_is_added_outside_the_allowed_folders(closed_server: Server, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    answer = closed_server.client.post("folders", params={"path": str(tmp_path / "outside"), "file": "x.png"}, content=b"x")
    assert answer.status_code == 403 and list((tmp_path / "outside").iterdir()) == []


def test_every_window_is_told_of_what_another_changed(server: Server, tmp_path: Path):
    (tmp_path / "mika").mkdir()
    (tmp_path / "mika" / "a.png").write_bytes(b"x")

    def edits() -> int:
        return int(server.get("status").json()["edits"])

    before = edits()
    added = send(server, tmp_path / "mika", "b.png", b"new")["path"]
    assert edits() == before + 1
    server.client.post("caption", json={"path": str(tmp_path / "mika" / "a.png"), "text": "words"})
    assert edits() == before + 2
    take_back(server, added)
    assert edits() == before + 3
