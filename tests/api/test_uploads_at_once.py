"""Two uploads of one file at once, and an upload for which the disk has no room."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import httpx
import pytest

from lora_trainer.api.routes import file_routes
from tests.api.conftest import V1, Server


def test_a_file_that_is_being_sent_is_not_mixed_with_a_second_one(server: Server):
    go, sent = threading.Event(), threading.Event()

    def slowly():
        yield b"a" * 2_000_000
        sent.set()
        go.wait(60)
        yield b"b" * 2_000_000

    answers: list[httpx.Response] = []

    def send() -> None:
        with httpx.Client(base_url=server.origin + V1, timeout=60) as client:
            answers.append(client.post("uploads/moon", params={"file": "x.png"}, content=slowly()))

    first = threading.Thread(target=send)
    first.start()
    sent.wait(60)
    folder = server.host.paths().uploads_dir / "moon"
    server.wait_for(lambda: (folder / "x.png.part").is_file())
    second = server.client.post("uploads/moon", params={"file": "x.png"}, content=b"c" * 3_000_000)
    assert second.status_code == 409 and "x.png is being sent already" in second.json()["problems"][0]["message"]
    assert server.client.post("uploads/moon", params={"file": "y.png"}, content=b"d").status_code == 200
    assert [file["name"] for file in server.get("uploads/moon").json()["files"]] == ["y.png"]
    go.set()
    first.join(60)
    assert answers[0].status_code == 200
    assert (folder / "x.png").read_bytes() == b"a" * 2_000_000 + b"b" * 2_000_000
    assert sorted(path.name for path in folder.iterdir()) == ["x.png", "y.png"]
    again = server.client.post("uploads/moon", params={"file": "x.png"}, content=b"c")
    assert again.status_code == 200 and Path(again.json()["path"]).name == "x (2).png"


def test_an_upload_without_room_on_the_disk_says_so_and_may_be_sent_again(server: Server, monkeypatch: pytest.MonkeyPatch):
    async def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(file_routes, "_write_chunks", full)
        answer = server.client.post("uploads/moon", params={"file": "x.png"}, content=b"abc")
    assert answer.status_code == 400 and "Free some disk space" in answer.json()["problems"][0]["fix"]
    assert server.client.post("uploads/moon", params={"file": "x.png"}, content=b"abc").json()["bytes"] == 3
