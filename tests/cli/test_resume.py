"""train --resume from the command line: values that the run has already, and two resumes at once."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from lora_trainer.jobs.folder import RunFolder


def interrupted(shell, config) -> tuple[RunFolder, list[str]]:
    """A run that was killed after a state was saved, and the words that it was started with."""
    shell.write("", "empty.toml")
    words = ["train", str(config(400)), "--set", "save.state_every_n_steps=1", "--set", "save.output_dir=out", "--set", "network.dim=4"]
    process = shell.start(*words)
    folder = shell.wait_for_step(3)
    shell.wait_for(lambda: list(folder.path.glob("state/step-*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder, words


def test_the_values_that_a_run_began_with_are_no_change_and_of_two_resumes_one_is_refused(shell, config):
    folder, words = interrupted(shell, config)
    other = shell(*words, "--set", "network.dim=8", "--resume", "runs/moon")
    assert other.returncode == 2 and "network.dim cannot be changed" in other.stderr and "save.output_dir" not in other.stderr
    before, events = folder.outcome(), folder.events_file.read_bytes()
    assert before == "interrupted"
    first, second = (shell.start(*words, "--set", "model.hub_token=abc", "--resume", "runs/moon") for _ in range(2))
    shell.wait_for(lambda: first.poll() is not None or second.poll() is not None)
    loser, winner = (first, second) if first.poll() is not None else (second, first)
    assert loser.returncode == 1 and "still going on" in loser.stderr.read()
    shell.wait_for(lambda: folder.pid_file.exists() and json.loads(folder.pid_file.read_bytes())["pid"] == winner.pid)
    shell.wait_for(lambda: len(folder.events()) > events.count(b"\n") + 3)
    assert folder.outcome() is None
    assert shell("control", "runs/moon", "stop").returncode == 0
    assert winner.wait(60) == 130
    told = folder.events()
    assert [event["n"] for event in told] == list(range(1, len(told) + 1))
    assert sum(event["event"] == "resumed" for event in told) == 1 and not [event for event in told if event["event"] == "changed"]
    assert folder.outcome() == "stopped" and not folder.pid_file.exists()
    assert not list(Path(shell.folder, "out").glob(".*"))


def test_a_fault_outside_a_run_points_to_no_report(shell, monkeypatch):
    shell.write("import lora_trainer.cli.runs as verb\ndef run(*_): raise ZeroDivisionError('x')\nverb.run = run\n", "sitecustomize.py")
    done = shell("runs", PYTHONPATH=f"{shell.folder}:{shell.environment()['PYTHONPATH']}")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert "report.txt" not in done.stderr and "please report it" in done.stderr
