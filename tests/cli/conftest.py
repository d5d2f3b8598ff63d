"""The command line as users have it: another process, its streams and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_trainer.jobs.folder import RunFolder

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs verbs in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen] = []

    def environment(self, **changes: str) -> dict[str, str]:
        known = {key: value for key, value in os.environ.items() if key not in ("LC_ALL", "LC_MESSAGES", "LANG")}
        quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "LANG": "C.UTF-8"}
        return known | quiet | changes

    def __call__(self, *words: object, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "lora_trainer", *map(str, words)]
        encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
        done = subprocess.run(command, cwd=self.folder, env=self.environment(**environment), capture_output=True, timeout=580, check=False)
        done.stdout, done.stderr = (stream.decode(encoding) for stream in (done.stdout, done.stderr))
        return done

    def json(self, *words: object, **environment: str) -> object:
        """What --json prints; the verb has to end well."""
        done = self(*words, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *words: object) -> subprocess.Popen:
        """A verb that goes on beside the test."""
        command = [sys.executable, "-m", "lora_trainer", *map(str, words)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment(), encoding="utf-8", **streams)
        self.started.append(process)
        return process

    def write(self, text: str, name: str = "my.toml") -> Path:
        (self.folder / name).write_text(text, encoding="utf-8")
        return self.folder / name

    def wait_for(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.02)
        return found

    def wait_for_step(self, step: int, run: str = "runs/moon") -> RunFolder:
        folder = RunFolder(self.folder / run)

        def there():
            return any(event["event"] == "stepped" and event["step"] >= step for event in folder.events())

        self.wait_for(there)
        return folder


@pytest.fixture
def shell(tmp_path):
    made = Shell(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def config(shell, toy_pictures):
    """A small run on the crescent called moon."""

    def write(steps=6, extra="", name="my.toml"):
        return shell.write(
            f"""
            [model]
            pretrained_model_name_or_path = "toy-sd15-host"
            [data]
            train_data_dir = '{toy_pictures / "crescent" / "train"}'
            trigger_word = "sks"
            resolution = 64
            batch_size = 2
            [network]
            dim = 4
            alpha = 4
            [steps]
            max_train_steps = {steps}
            [save]
            output_dir = "out"
            output_name = "moon"
            {extra}
            """.replace("            ", ""),
            name,
        )

    return write
