"""One damaged run is listed as that, with what is wrong; every other run, and every verb, works as before."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from lora_trainer.cli.main import main
from lora_trainer.jobs.folder import RunFolder, list_runs
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs import events_log
from lora_trainer.jobs.logs.events_log import EventsLog
from lora_trainer.jobs.manager import JobManager
from lora_trainer.jobs.other_process import OtherProcessRun
from tests.jobs.works import small_work

DEEP = b"[" * 100_000
EVENTS: list[tuple[str, bytes]] = [
    ("events.jsonl", b"\xff\xfe\x00\n"),
    ("events.jsonl", b"[1, 2]\n"),
    ("events.jsonl", b"null\n"),
    ("events.jsonl", b'"text"\n'),
    ("events.jsonl", b"{}\n"),
    ("events.jsonl", b'{"event": 5}\n'),
    ("events.jsonl", b'{"event": ["stepped"]}\n'),
    ("events.jsonl", b'{"event": "stepped"}\n'),
    ("events.jsonl", b'{"event": "stepped", "step": "five", "epoch": 1}\n'),
    ("events.jsonl", b'{"event": "stepped", "step": 5, "epoch": {}}\n'),
    ("events.jsonl", b'{"event": "resumed", "reason": "state", "step": null}\n'),
    ("events.jsonl", b'{"event": "phase", "name": 3}\n'),
    ("events.jsonl", b'{"event": "started", "plan": [1]}\n'),
    ("events.jsonl", b'{"event": "saved", "step": 1, "path": 7}\n'),
    ("events.jsonl", b'{"event": "changed", "step": 1}\n'),
    ("events.jsonl", b'{"event": "failed", "problems": 3}\n'),
    ("events.jsonl", b'{"event": "warned", "message": 3}\n'),
    ("events.jsonl", b'{"event": "stepped", "step": 1e999}\n'),
    ("events.jsonl", b'{"event": "stepped", "step": ' + b"9" * 30 + b"}\n"),
    ("events.jsonl", b"\0" * 4096 + b"\n"),
    ("events.jsonl", DEEP + b"\n"),
]
JSON: list[tuple[str, bytes]] = [
    (file, content)
    for file in ("manifest.json", "run.json", "plan.json")
    for content in (b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b'"x"', DEEP, b'{"a": ' + b"9" * 5000 + b"}")
]
VALUES: list[tuple[str, bytes]] = [
    ("manifest.json", json.dumps(content).encode())
    for content in (
        {"files": 3},
        {"files": [3]},
        {"files": [{}]},
        {"files": [{"path": 3, "epoch": "x", "step": 1, "sha256": "", "final": False}]},
        {"best": "x"},
        {"best": {"epoch": "x"}},
        {"validation": {}},
        {"validation": [{"loss": "x", "step": 1, "epoch": 1}]},
        {"step": "x"},
        {"step": True},
        {"total_steps": "x"},
        {"started": "yesterday"},
        {"started": 1e300, "ended": "x"},
        {"started": float("nan")},
        {"step_seconds": []},
        {"samples": 5},
    )
] + [
    ("run.json", json.dumps(content).encode())
    for content in (
        {"created": "x"},
        {"created": [1]},
        {"created": 1e999},
        {"name": 3},
        {"kind": ["train"]},
        {"of": {}},
        {"version": "x", "name": None},
        {"chosen": 3},
    )
]
HOLDERS: list[tuple[str, bytes]] = [
    ("pid", content)
    for content in (
        b"",
        b"x",
        b"[]",
        b'{"pid": "x", "machine": 3}',
        b'{"pid": [1]}',
        b'{"pid": -1, "machine": null, "mark": {}}',
        b'{"pid": ' + b"9" * 40 + b"}",
        DEEP,
    )
]


def two_runs(root: Path) -> RunFolder:
    """An intact run, and one that a test damages."""
    for name in ("intact", "broken"):
        folder = RunFolder.create(root, name)
        folder.config_file.write_text("[steps]\nmax_train_steps = 10\n", encoding="utf-8")
        Job(small_work(folder), folder).run()
    return folder


def write(folder: RunFolder, file: str, content: bytes) -> None:
    path = folder.path / file
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    os.utime(path, (1, 1))


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """The list of runs, as it is and as JSON."""
    history = JobManager().history(root, kinds=("train", "grid"))
    capsys.readouterr()
    assert main(["runs", "--dir", str(root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main(["runs", "--dir", str(root)]) == 0
    assert {run["id"] for run in history} >= {run["id"] for run in document}
    return {run["id"]: run for run in history}


@pytest.mark.parametrize("number", range(len(EVENTS + JSON + VALUES)))
def test_a_damaged_run_is_called_damaged_and_the_others_are_as_before(tmp_path: Path, capsys, number: int):
    file, content = (EVENTS + JSON + VALUES)[number]
    folder = two_runs(tmp_path)
    if file == "events.jsonl":
        content = folder.events_file.read_bytes() + content
    write(folder, file, content)
    runs = listed(tmp_path, capsys)
    assert set(runs) == {"intact", "broken"}
    assert runs["intact"]["state"] == "finished" and runs["intact"]["problems"] == [] and runs["intact"]["files"] == 2
    assert runs["broken"]["state"] == "damaged" and runs["broken"]["outcome"] in ("finished", "interrupted")
    assert any(file in problem["message"] and "delete" in problem["fix"] for problem in runs["broken"]["problems"])
    assert folder.is_alive() is False
    for verb in (["control", str(folder.path), "stop"], ["train", "--resume", str(folder.path)]):
        assert main(verb) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", range(len(HOLDERS)))
def test_a_damaged_holder_does_not_keep_a_run_alive(tmp_path: Path, capsys, number: int):
    folder = two_runs(tmp_path)
    write(folder, *HOLDERS[number])
    assert {run["state"] for run in listed(tmp_path, capsys).values()} == {"finished"}


@pytest.mark.parametrize("file", ["events.jsonl", "manifest.json", "run.json", "plan.json", "config.toml", "state", "samples"])
@pytest.mark.parametrize("kind", ["folder", "file", "pipe", "loop", "dangling"])
def test_what_is_no_file_in_a_runs_folder_hides_nothing(tmp_path: Path, capsys, file: str, kind: str):
    folder = two_runs(tmp_path)
    path = folder.path / file
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_bytes(b"x")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "missing")
    runs = listed(tmp_path, capsys)
    assert runs["intact"]["state"] == "finished" and "broken" in runs


def test_a_damaged_line_is_read_once_and_the_events_behind_it_keep_their_numbers(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1, "event": "phase", "name": "training"}\nrubbish\n{"n": 3, "event": "stepped", "step": 1}\n')
    log = EventsLog(path)
    assert [(event["n"], event["event"]) for event in log.read()] == [(1, "phase"), (2, "damaged"), (3, "stepped")]
    assert [event["n"] for event in log.read(after=2)] == [3] and log.read(after=3) == []


def test_a_run_that_is_followed_counts_its_damaged_lines(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon")
    values = dict.fromkeys(("epoch", "loss", "loss_average", "lr", "grad_norm", "seconds", "vram_mb"), 1)
    step = [json.dumps({"n": 3 + n, "event": "stepped", "step": n, **values}).encode() + b"\n" for n in range(3)]
    folder.events_file.write_bytes(b"rubbish\n[]\n" + step[1])
    run = OtherProcessRun(folder)
    run.poll()
    run.poll()
    assert (run.status.step, run.status.n) == (1, 1)
    with folder.events_file.open("ab") as file:
        file.write(step[2])
    run.poll()
    assert (run.status.step, run.status.n) == (2, 2)


def test_five_hundred_runs_in_which_nothing_changed_are_listed_without_reading_them_again(tmp_path: Path):
    folder = two_runs(tmp_path)
    for number in range(498):
        shutil.copytree(folder.path, tmp_path / f"copy-{number:03}")
    manager = JobManager()
    times = []
    for _ in range(6):
        begun = time.process_time()  # this process's own time: other tests may run beside it
        listed = manager.history(tmp_path)
        times.append(time.process_time() - begun)
        assert len(listed) == 500
    first, *again = times  # read once; then only looked at (measured: a sixteenth of the time)
    assert min(again) < first / 4, times


def test_a_run_that_changed_is_read_anew(tmp_path: Path):
    folder = two_runs(tmp_path)
    manager = JobManager()
    assert [run["name"] for run in manager.history(tmp_path)] == ["broken", "intact"]
    folder.update_info(name="renamed")
    write(folder, "manifest.json", b"{")
    runs = {run["id"]: run for run in manager.history(tmp_path)}
    assert runs["broken"]["name"] == "renamed" and runs["broken"]["state"] == "damaged"
    claim = folder.claim()
    folder.events_file.write_bytes(b'{"n": 1, "event": "phase", "name": "training"}\n')
    assert manager.history(tmp_path)[0]["state"] == "damaged"  # this process holds it, and knows that it does not train
    folder.release(claim)
    folder.remove()
    assert [run.id for run in list_runs(tmp_path)] == ["intact"]


def test_lines_are_checked_in_the_same_way_after_another_library_has_looked_at_the_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for kind in events_log.EVENT_TYPES.values():
        attrs.resolve_types(kind)
    events_log._checks_of.cache_clear()
    folder = two_runs(tmp_path)
    content = folder.events_file.read_bytes() + b'{"event": "stepped", "step": "five", "epoch": 1}\n'
    write(folder, "events.jsonl", content)
    assert listed(tmp_path, capsys)["broken"]["state"] == "damaged"
