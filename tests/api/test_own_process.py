"""A run with a process of its own, over the routes: started, steered, and seen when it dies."""

from __future__ import annotations

import json
import os
import signal
import time

from lora_trainer.jobs.folder import RunFolder
from tests.api.conftest import small_config


def waited(look, seconds=240.0):
    """The first answer that is not empty."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came")


def test_a_run_in_its_own_process_is_steered_from_the_tab_and_its_death_is_told(server, pictures):
    config = small_config(pictures)
    config["memory"] = {**config.get("memory", {}), "own_process": True}
    config["steps"] = {"max_train_steps": 100_000}
    run = server.post("runs", {"config": config}).json()["run"]
    folder = RunFolder(server.host.paths().runs_dir / run)

    def status(*states):
        found = server.get(f"runs/{run}").json()
        assert found["outcome"] is None, found["error"]
        return found if found["state"] in states and found["step"] else None

    found = waited(lambda: status("training"))
    assert found["own_process"]
    assert json.loads(folder.pid_file.read_text(encoding="utf-8"))["pid"] != os.getpid()
    assert server.get("status").json()["run"]["total_steps"] == 100_000
    server.post(f"runs/{run}/control", {"command": "pause"})
    step = waited(lambda: status("paused"))["step"]
    assert server.post("runs", {"config": config}).status_code == 409  # one run at a time, wherever it goes on
    server.post(f"runs/{run}/control", {"command": "resume"})
    waited(lambda: (now := status("training")) and now["step"] > step)

    os.kill(json.loads(folder.pid_file.read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
    ended = waited(lambda: (now := server.get(f"runs/{run}").json())["outcome"] and now)
    assert ended["outcome"] == "failed"
    assert "ended without a message" in ended["error"]
    assert server.host.refreshed == 1
