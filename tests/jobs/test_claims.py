"""Of several processes that want one run, one gets it; the others leave no trace in it, and a killed one is in nobody's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_trainer.control import Control
from lora_trainer.errors import HostBusy, TrainerError
from lora_trainer.jobs.claims import AlreadyClaimed, Claim, is_held
from lora_trainer.jobs.folder import RunFolder, list_runs, remove_ended
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.manager import JobManager
from lora_trainer.train.outputs.saving import OutputNames, claimed_names
from tests.jobs.works import endless_work, small_work

ROOT = Path(__file__).parents[2]
TRAINS = """
import sys
from pathlib import Path
from tests.jobs.works import endless_work
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.job import Job
Job(lambda control: endless_work(control, 0.001), RunFolder(Path(sys.argv[1]))).run()
"""
CLAIMS = """
import sys, time
from pathlib import Path
from lora_trainer.jobs.claims import AlreadyClaimed, Claim
path, go = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    pass
try:
    Claim.take(path)
    print("won", flush=True)
except AlreadyClaimed:
    print("lost", flush=True)
sys.stdin.read()
"""


def python(script: str, *words: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], cwd=ROOT, text=True, **options)


@contextmanager
def killed_at_the_end(*processes: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_second_process_leaves_no_trace_in_a_run_that_goes_on(tmp_path: Path):
    folder = RunFolder(tmp_path / "moon")
    folder.path.mkdir()
    folder.update_info(name="moon")
    winner = python(TRAINS, folder.path)
    with killed_at_the_end(winner):
        wait_for(lambda: len(folder.events()) > 20)
        holder = folder.pid_file.read_bytes()
        loser = python(TRAINS, folder.path, stderr=subprocess.PIPE)
        assert loser.wait(30) == 1 and "HostBusy" in loser.stderr.read()
        loser.stderr.close()
        with pytest.raises(HostBusy, match="moon"):
            Job(small_work(folder), folder)
        with pytest.raises(HostBusy, match="moon"):
            JobManager().start(folder, small_work(folder))
        assert folder.pid_file.read_bytes() == holder and folder.outcome() is None
        remove_ended([folder])
        assert folder.pid_file.read_bytes() == holder
        folder.command("stop")
        winner.wait(30)
    events = folder.events()
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    assert [event["event"] for event in events].count("started") == 1 and folder.outcome() == "stopped"
    assert not folder.pid_file.exists()


def test_a_killed_holder_is_in_nobodys_way_and_one_of_many_takes_its_place(tmp_path: Path):
    path, go = tmp_path / "pid", tmp_path / "go"
    for round_ in range(3):
        dead = python(CLAIMS, path, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # an existing path: it goes at once
        with killed_at_the_end(dead):
            assert [dead.stdout.readline().strip(), dead.stdout.readline().strip()] == ["ready", "won"]
            os.kill(dead.pid, signal.SIGKILL)
            dead.wait()
        assert path.exists() and not is_held(path)
        others = [python(CLAIMS, path, go, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
        with killed_at_the_end(*others):
            assert {other.stdout.readline().strip() for other in others} == {"ready"}
            go.touch()
            results = [other.stdout.readline().strip() for other in others]
            assert sorted(results) == ["lost"] * 5 + ["won"], round_
            holder = json.loads(path.read_bytes())
            assert holder["pid"] == others[results.index("won")].pid and is_held(path)
        go.unlink()


def test_only_the_holder_gives_a_claim_back(tmp_path: Path):
    first = Claim.take(tmp_path / "pid")
    with pytest.raises(AlreadyClaimed):
        Claim.take(tmp_path / "pid")
    assert not Claim(tmp_path / "pid", "another").release() and first.path.exists()
    assert first.release() and not first.release()
    second = Claim.take(tmp_path / "pid")
    assert not first.release() and is_held(tmp_path / "pid")
    second.release()
    assert not is_held(tmp_path / "pid")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "12"}', b'{"pid": 99999999999999999999, "machine": 5}', b"[" * 100_000])
def test_a_damaged_claim_holds_for_a_moment_and_then_no_more(tmp_path: Path, content: bytes):
    path = tmp_path / "pid"
    path.write_bytes(content)
    with pytest.raises(AlreadyClaimed):  # its holder may be just writing it
        Claim.take(path)
    os.utime(path, (1, 1))
    assert not is_held(path)
    assert Claim.take(path).release()


def test_a_new_run_is_claimed_before_others_can_take_it_for_an_ended_one(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon-grid", kind="grid", of="moon")
    remove_ended([RunFolder(folder.path)])
    with pytest.raises(HostBusy):
        Job(small_work(folder), RunFolder(folder.path))
    assert Job(small_work(folder), folder).run().outcome == "finished"
    remove_ended([RunFolder(folder.path)])
    assert list_runs(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_the_claim_goes_to_the_process_that_was_started_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    claim = Claim.take(tmp_path / "pid")
    hand = "import sys, json; from pathlib import Path; from lora_trainer.jobs.claims import Claim\n"
    hand += "claim = Claim.handed_over(Path(sys.argv[1])); print(claim is not None, flush=True); sys.stdin.read(); claim.release()"
    child = python(hand, claim.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **claim.environment()})
    with killed_at_the_end(child):
        assert child.stdout.readline().strip() == "True"
        assert json.loads(claim.path.read_bytes())["pid"] == child.pid
        with pytest.raises(AlreadyClaimed):
            Claim.take(claim.path)
        child.stdin.close()
        child.wait(30)
    assert not claim.path.exists() and not claim.release()


def test_an_error_while_the_run_is_prepared_gives_the_claim_back(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon")
    folder.events_file.mkdir()
    with pytest.raises(TrainerError, match="moon"):
        Job(small_work(folder), folder)
    assert not folder.pid_file.exists()


def test_a_run_that_ends_abruptly_gives_the_claim_back(tmp_path: Path):
    class Killed(BaseException):
        pass

    def work(control):
        for event in endless_work(control, 0.0):
            yield event
            if getattr(event, "step", 0) == 3:
                raise Killed

    folder = RunFolder.create(tmp_path, "moon")
    with pytest.raises(Killed):
        Job(work, folder).run()
    assert not folder.pid_file.exists() and folder.outcome() == "interrupted"


def test_names_of_files_are_held_by_one_run_and_a_killed_one_does_not_keep_them(tmp_path: Path):
    names = OutputNames(tmp_path, "moon")
    lock = tmp_path / ".moon.running"
    holder = python(CLAIMS, lock, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with killed_at_the_end(holder):
        assert [holder.stdout.readline().strip(), holder.stdout.readline().strip()] == ["ready", "won"]
        with pytest.raises(TrainerError, match="another run is writing files named moon"), claimed_names(names, True):
            pass
        assert json.loads(lock.read_bytes())["pid"] == holder.pid
    with claimed_names(names, True):
        assert json.loads(lock.read_bytes())["pid"] == os.getpid()
    assert not lock.exists()


def test_of_commands_from_many_processes_at_once_none_is_lost_or_done_twice(tmp_path: Path):
    folder = RunFolder.create(tmp_path, "moon")
    sends = "import sys; from pathlib import Path; from lora_trainer.jobs.folder import RunFolder\nfolder = RunFolder(Path(sys.argv[1]))\n"
    sends += "for number in range(40): folder.change({f'{sys.argv[2]}.{number}': 1})"
    control, changes = Control(folder.control_file), []
    senders = [python(sends, folder.path, name) for name in ("a", "b", "c")]
    with killed_at_the_end(*senders):
        while any(sender.poll() is None for sender in senders):
            changes += control.take_changes()
        assert [sender.returncode for sender in senders] == [0, 0, 0]
    changes += control.take_changes()
    assert sorted(path for change in changes for path in change) == sorted(f"{name}.{number}" for name in "abc" for number in range(40))
