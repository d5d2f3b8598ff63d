"""Runs that another process trains are seen and steered like those of this one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.process import process_start_time
from tests.api.conftest import Server


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is alive."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def append(folder: RunFolder, *events: dict[str, Any]) -> None:
    """Writes lines as a run does."""
    n = len(folder.events())
    with folder.events_file.open("a", encoding="utf-8") as file:
        for number, event in enumerate(events, n + 1):
            file.write(json.dumps({"n": number, "time": time.time(), **event}) + "\n")


def stepped(step: int) -> dict[str, Any]:
    """A step's line."""
    numbers = {"loss": 0.1, "loss_average": 0.1, "lr": 1e-4, "grad_norm": 1.0, "seconds": 0.5, "vram_mb": 0.0}
    return {"event": "stepped", "step": step, "epoch": 1, **numbers}


def begin(runs: Path, process: subprocess.Popen[bytes]) -> RunFolder:
    """A run's folder that the process works in."""
    folder = RunFolder.create(runs, "moon")
    owner = {"pid": process.pid, "mark": process_start_time(process.pid), "machine": socket.gethostname()}
    folder.pid_file.write_text(json.dumps(owner), encoding="utf-8")
    append(folder, {"event": "started", "plan": {"total_steps": 10, "epochs": 1, "steps_per_epoch": 10}}, stepped(1), stepped(2))
    return folder


def run_of(server: Server, **wanted: Any) -> dict[str, Any]:
    """The status' run once it is as wanted."""
    end = time.monotonic() + 20
    while True:
        run: dict[str, Any] = server.get("status").json()["run"] or {}
        if all(run.get(key) == value for key, value in wanted.items()):
            return run
        assert time.monotonic() < end, run
        time.sleep(0.1)


def test_a_run_of_another_process_is_followed_to_its_end(server: Server, other: subprocess.Popen[bytes]):
    folder = begin(server.host.paths().runs_dir, other)
    run = run_of(server, state="training", step=2)
    assert (run["id"], run["total_steps"]) == ("moon", 10)
    assert server.post("runs/moon/control", {"command": "pause"}).status_code == 200
    assert folder.control_file.read_text(encoding="utf-8").split() == ["pause"]
    append(folder, stepped(3), {"event": "finished", "step": 3, "files": []})
    folder.pid_file.unlink()
    assert run_of(server, state="finished")["step"] == 3


def test_a_run_whose_process_is_gone_is_no_longer_shown_as_going_on(server: Server, other: subprocess.Popen[bytes]):
    begin(server.host.paths().runs_dir, other)
    run_of(server, state="training")
    other.kill()
    other.wait()
    assert run_of(server, id=None) == {}
    assert server.get("runs").json()[0]["state"] == "interrupted"
