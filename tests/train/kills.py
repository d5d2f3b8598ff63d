"""Runs that are killed at any moment: each in a forked process, so that a kill costs a second and not a start of Python."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lora_trainer.jobs import resume_point
from lora_trainer.jobs.folder import RunFolder
from tests.train.resume_runs import VARIED, folder_of, resume, same, small_config, train

CONFIG: dict[str, Any] = {**VARIED, "steps__max_train_steps": 10, "save__every_n_steps": 2}


def forked(work: Callable[[], object]) -> int:
    """The number of a process that does the work and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:  # pragma: no cover - the child
        os.setpgrp()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)
    raise AssertionError


def wait(pid: int) -> int:
    """Its exit status; 137 when it was killed."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - status if status < 0 else status


def whole_run(root: Path, **options: Any) -> Path:
    """The run that nobody kills; its final file."""
    config = small_config(root / "whole", **CONFIG, **options)
    assert wait(forked(lambda: train(config, folder_of(config)))) == 0
    return root / "whole" / "loras" / "small.safetensors"


def kill_once(
    root: Path, whole: Path, chance: random.Random, *, inside_a_save: bool, first_state_only: bool = False, **options: Any
) -> dict[str, Any]:
    """Kills a run at a random moment after its first state, resumes it, and says what came of it."""
    config = small_config(root, **CONFIG, **options)
    folder = folder_of(config)
    pid = forked(lambda: train(config, folder))
    _until(lambda: resume_point.newest_state_step(folder.path) is not None, pid)
    if first_state_only:
        delay = 0.0
    else:
        delay = chance.uniform(0.0, 2.0)
        time.sleep(delay)
    if inside_a_save:
        _until(lambda: _half_written(root), pid)
    ended = os.waitpid(pid, os.WNOHANG)[0] == pid
    if not ended:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    broken = [str(path) for path in _files(root) if not _whole(path)]
    there = {path: path.stat().st_size for path in _files(root)}
    half = _half_written(root)
    again = 0 if ended else wait(forked(lambda: resume(folder)))
    return {
        "killed": not ended,
        "at": resume_point.newest_state_step(folder.path),
        "inside": half,
        "broken": broken,
        "lost": [str(path) for path in there if not path.is_file()],
        "left": [str(path) for path in root.rglob("*.part")] + [str(path) for path in root.rglob("*.old")],
        "resumed": again == 0 and RunFolder(folder.path).outcome() == "finished",
        "same": again == 0 and same(root / "loras" / "small.safetensors", whole),
        "named": sorted(Path(file["path"]).name for file in folder.manifest().get("files", [])),
    }


def _until(there: Callable[[], object], pid: int) -> None:
    end = time.monotonic() + 60
    while not there() and time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.0005)


def _half_written(root: Path) -> bool:
    return any(root.glob("loras/.*.part")) or any(root.glob("runs/run/state/.*.part"))


def _files(root: Path) -> list[Path]:
    return sorted(path for path in (root / "loras").rglob("*.safetensors") if not path.name.startswith("."))


def _whole(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="pt") as file:
            return all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118
    except Exception:
        return False
