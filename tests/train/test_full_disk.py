"""A disk that is full when a file is written makes the run wait: no file is lost, and the result is the same."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lora_trainer import files
from lora_trainer.errors import DiskFull
from lora_trainer.events import Finished, Paused, Warned
from lora_trainer.jobs import resume_point
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
from lora_trainer.train import pausing
from lora_trainer.train.outputs import background_writer
from tests.jobs.works import small_work
from tests.train.resume_runs import folder_of, same, train
from tests.train.runs import small_config


class Disk:
    """A disk that has no room for files whose path contains a word, until it is emptied."""

    def __init__(self, word: str) -> None:
        self.word, self.is_full, self.failed = word, True, 0
        self._write = files._write

    def write(self, path: Path, content: bytes, flush: Any) -> None:
        def full(file: Any) -> None:
            if self.word in str(path) and self.is_full:
                self.failed += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(file)

        self._write(path, content, full)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_writer, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(pausing, "DISK_POLL_SECONDS", 0.05)


@pytest.mark.parametrize("word", ["state.safetensors", "state.json", ".safetensors"])
def test_a_state_waits_for_room_as_weights_do(tmp_path: Path, monkeypatch, quick: None, word: str):
    options = {"steps__max_train_steps": 6, "save__every_n_steps": 3, "save__state_every_n_steps": 2}
    config = small_config(tmp_path / "whole", **options)
    train(config, folder_of(config))
    disk = Disk(word)

    def make_room(job: Job, event: Any) -> None:
        disk.is_full = disk.is_full and not isinstance(event, Paused)

    monkeypatch.setattr(files, "_write", disk.write)
    config = small_config(tmp_path / "full", **options)
    folder = folder_of(config)
    seen = train(config, folder, watch=make_room)
    assert disk.failed and isinstance(seen[-1], Finished)
    assert [event.reason for event in seen if isinstance(event, Paused)] == ["disk"]
    assert [event for event in seen if isinstance(event, Warned) and "waits until there is room" in event.message.text()]
    assert resume_point.require_state(folder.path).step == 6
    for name in ("small.safetensors", "small-step00000003.safetensors"):
        assert same(tmp_path / "full" / "loras" / name, tmp_path / "whole" / "loras" / name)
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_waits_for_room_can_be_stopped(tmp_path: Path, monkeypatch, quick: None):
    config = small_config(tmp_path, steps__max_train_steps=400, save__state_every_n_steps=2)
    monkeypatch.setattr(files, "_write", Disk("state.safetensors").write)

    def stop(job: Job, event: Any) -> None:
        if isinstance(event, Paused):
            job.command("stop")

    folder = folder_of(config)
    with pytest.raises(DiskFull, match=r"No space left"):
        train(config, folder, watch=stop)
    assert folder.outcome() == "failed" and folder.manifest()["step"] < 400 and not folder.pid_file.exists()


def test_events_wait_in_memory_while_the_disk_is_full(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon")
    work = small_work(folder)
    job = Job(work, folder)
    events_file = job._sinks[0]._file

    class Full:
        """Takes a few bytes, then none, then all."""

        calls = 0

        def write(self, content: bytes) -> int:
            self.calls += 1
            if self.calls == 3:
                return events_file.write(content[:5])
            if 3 < self.calls < 9:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return events_file.write(content)

        def close(self) -> None:
            events_file.close()

    job._sinks[0]._file = Full()
    assert job.run().outcome == "finished"
    events = folder.events()
    assert [event["n"] for event in events] == list(range(1, len(events) + 1)) and folder.outcome() == "finished"
    assert not [event for event in events if event["event"] == "warned"]
    assert sum(event["event"] == "stepped" for event in events) == 10
