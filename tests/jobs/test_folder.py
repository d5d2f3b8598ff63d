"""A run's folder is unique, readable at any moment, and honest about runs whose process died."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lora_trainer.errors import TrainerError
from lora_trainer.jobs.folder import RunFolder, list_runs
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.logs.events_log import EventsLog
from lora_trainer.jobs.manager import JobManager
from tests.jobs.works import small_work, stepped

ROOT = Path(__file__).parents[2]


def test_a_taken_name_gets_a_number_behind_it(tmp_path):
    names = [RunFolder.create(tmp_path, "moon").id for _ in range(3)]
    assert names == ["moon", "moon-v2", "moon-v3"]


def test_many_at_once_never_get_the_same_folder(tmp_path):
    made = []
    threads = [threading.Thread(target=lambda: made.append(RunFolder.create(tmp_path, "moon").id)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


def test_a_file_in_the_way_of_the_runs_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("x", encoding="utf-8")
    with pytest.raises(TrainerError, match="runs"):
        RunFolder.create(tmp_path / "runs", "moon")


def test_a_hundred_looks_at_the_end_of_a_long_file_cost_less_than_reading_it_once(tmp_path):
    path = tmp_path / "events.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(1, 100_001):
            file.write(json.dumps({"n": n, "event": "stepped", "step": n, "loss": 0.1}) + "\n")
    log = EventsLog(path)
    begun = time.process_time()
    assert len(log.read()) == 100_000
    whole = time.process_time() - begun
    for after in range(99_000, 99_100):
        assert [event["n"] for event in log.read(after, limit=3)] == [after + 1, after + 2, after + 3]
    assert time.process_time() - begun - whole < whole


def test_a_half_last_line_is_not_there_until_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventsLog(path)
    assert log.read() == []
    path.write_bytes(b'{"n": 1}\n{"n": 2')
    assert [event["n"] for event in log.read()] == [1]
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    assert [event["n"] for event in log.read(after=1)] == [2, 3]
    path.write_bytes(b'{"n": 1}\n')
    assert [event["n"] for event in log.read()] == [1]


def test_history_is_newest_first_with_what_the_menu_shows(tmp_path):
    for name in ("moon", "star"):
        folder = RunFolder.create(tmp_path, name)
        Job(small_work(folder), folder).run()
    history = JobManager().history(tmp_path)
    assert [run["id"] for run in history] == ["star", "moon"]
    run = history[0]
    assert {key: run[key] for key in ("outcome", "state", "step", "total_steps", "epoch", "best_epoch", "files")} == {
        "outcome": "finished",
        "state": "finished",
        "step": 10,
        "total_steps": 10,
        "epoch": 2,
        "best_epoch": 1,
        "files": 2,
    }
    assert run["started"] > 0 and run["mb"] >= 0


def test_a_last_line_longer_than_the_look_is_still_the_outcome(tmp_path):
    folder = RunFolder.create(tmp_path, "moon")
    folder.events_file.write_text(json.dumps({"event": "failed", "step": 1, "problems": ["x" * 100_000]}) + "\n", encoding="utf-8")
    assert folder.outcome() == "failed"


KILLED = """
import sys, time
from pathlib import Path
from tests.jobs.works import endless_work
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
Job(lambda control: endless_work(control, 0.001), RunFolder.create(Path(sys.argv[1]), "moon")).run()
"""


def test_a_killed_process_leaves_a_readable_run_that_is_called_interrupted(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    folder = RunFolder(tmp_path / "moon")
    end = time.monotonic() + 30
    while len(folder.events()) < 20:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    assert folder.outcome() is None and folder.summary()["state"] == "training"
    os.kill(process.pid, signal.SIGKILL)
    while folder.outcome() is None:  # before anybody waited for it
        assert time.monotonic() < end
        time.sleep(0.01)
    process.wait()
    summary = JobManager().history(tmp_path)[0]
    assert summary["outcome"] == summary["state"] == "interrupted" and summary["step"] >= 19
    assert [event["n"] for event in folder.events()] == list(range(1, len(folder.events()) + 1))


def test_another_process_with_the_old_number_is_not_taken_for_the_run(tmp_path):
    folder = RunFolder.create(tmp_path, "moon")
    folder.claim()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        owner = json.loads(folder.pid_file.read_text(encoding="utf-8"))
        folder.pid_file.write_text(json.dumps(owner | {"pid": other.pid}), encoding="utf-8")
        alive = folder.is_alive()
    finally:
        other.kill()
        other.wait()
    if owner["mark"]:  # only where the system tells when a process began
        assert alive is False


def test_the_own_process_knows_its_runs_by_the_manager_and_not_by_the_number(tmp_path):
    folder = RunFolder.create(tmp_path, "moon")
    folder.claim()
    folder.events_file.write_text('{"n": 1, "event": "started", "plan": {}}\n', encoding="utf-8")
    assert folder.outcome() == "interrupted" and folder.outcome(running=True) is None


def test_a_folder_that_is_no_run_is_not_in_the_history(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    assert list_runs(tmp_path) == [] and list_runs(tmp_path / "missing") == []


def test_seconds_left_follow_the_measured_pace(tmp_path):
    from lora_trainer.events import Started
    from lora_trainer.jobs.status import RunStatus

    status = RunStatus("moon", "moon").after(Started({"total_steps": 100}), 0.0)
    assert status.seconds_left is None
    for step in range(1, 11):
        status = status.after(stepped(step, seconds=2.0), step * 2.0)
    assert status.seconds_left == pytest.approx(180.0)


def test_a_pause_does_not_make_the_rest_look_longer(tmp_path):
    from lora_trainer.events import Paused, Resumed, Started
    from lora_trainer.jobs.status import RunStatus

    status = RunStatus("moon", "moon").after(Started({"total_steps": 10}), 0.0).after(stepped(1, seconds=1.0), 1.0)
    status = status.after(Paused(1), 2.0).after(Resumed(1), 5000.0).after(stepped(2, seconds=1.0), 5001.0)
    assert status.seconds_left == pytest.approx(8.0) and status.state == "training"


def test_time_for_previews_counts_in_what_is_left(tmp_path):
    from lora_trainer.events import Phase, Started
    from lora_trainer.jobs.status import RunStatus

    status = RunStatus("moon", "moon").after(Started({"total_steps": 10}), 0.0).after(stepped(1, seconds=1.0), 1.0)
    status = status.after(Phase("sampling", 1), 1.0)
    assert status.state == "sampling"
    status = status.after(Phase("training"), 5.0).after(stepped(2, seconds=1.0), 6.0)
    assert status.seconds_left == pytest.approx(8 * (1 + 4 / 2))


def test_the_size_of_a_folder_is_told_while_its_files_come_and_go(tmp_path):
    folder = RunFolder.create(tmp_path, "busy")
    (folder.path / "kept.bin").write_bytes(b"x" * 1000)
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count():
            part = folder.path / "state" / f".step-{number}.part"
            part.mkdir(parents=True)
            (part / "state.bin").write_bytes(b"x")
            shutil.rmtree(part)
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = [folder.size_bytes() for _ in range(400)]
    finally:
        stop.set()
        writer.join()
    assert min(sizes) >= 1000
