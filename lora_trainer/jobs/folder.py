"""A run's folder: its files, and reading them whether the run is going on, has ended, or was killed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.control import CHANGE, COMMANDS
from lora_trainer.errors import TrainerError
from lora_trainer.files import write_atomically
from lora_trainer.jobs import folder_migrations, resume_point
from lora_trainer.jobs.events_log import EventsLog, last_events
from lora_trainer.jobs.process import is_process_alive, process_start_time
from lora_trainer.jobs.status import ENDED, FROM_STATE, PHASE_STATES
from lora_trainer.messages import Message

STALE_SECONDS = 600
"""A run on another machine that wrote nothing for this long counts as dead."""


@attrs.frozen(eq=False)
class RunFolder:
    """`config.toml plan.json events.jsonl manifest.json report.txt samples/ state/ grid/ control`; its name is the run's id."""

    path: Path
    log: EventsLog = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "log", EventsLog(self.path / "events.jsonl"))

    @classmethod
    def create(cls, runs_dir: Path, name: str, *, kind: str = "train", of: str = "") -> RunFolder:
        """A new folder NAME, or NAME-v2, NAME-v3 ... if that exists: concurrent processes never get the same one.

        `kind` is "train" or "grid", `of` the run that a grid belongs to. Raises TrainerError if it cannot be created.
        """
        number = 1
        while True:
            path = runs_dir / (name if number == 1 else f"{name}-v{number}")
            try:
                runs_dir.mkdir(parents=True, exist_ok=True)
                path.mkdir()
                break
            except FileExistsError:
                if not runs_dir.is_dir():
                    raise _cannot_create(path, "a file is in the way") from None
                number += 1
            except OSError as error:
                raise _cannot_create(path, error.strerror or str(error)) from error
        folder = cls(path)
        folder.update_info(version=folder_migrations.VERSION, name=path.name, kind=kind, of=of, created=round(time.time(), 3))
        return folder

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.path.name

    config_file = property(lambda self: self.path / "config.toml")
    plan_file = property(lambda self: self.path / "plan.json")
    events_file = property(lambda self: self.path / "events.jsonl")
    manifest_file = property(lambda self: self.path / "manifest.json")
    report_file = property(lambda self: self.path / "report.txt")
    control_file = property(lambda self: self.path / "control")
    pid_file = property(lambda self: self.path / "pid")
    samples_dir = property(lambda self: self.path / "samples")
    grid_dir = property(lambda self: self.path / "grid")

    # Reading

    def info(self) -> dict[str, Any]:
        """{"version", "name", "kind", "of", "created"} of run.json; `name` defaults to the folder's name."""
        content = _read_json(self.path / "run.json")
        version = folder_migrations.version_of(content)
        return (
            {"name": self.id, "kind": "train", "of": "", "created": 0.0}
            | folder_migrations.migrate("run.json", content, version)
            | {"version": version}
        )

    def update_info(self, **values: Any) -> None:
        """Updates values of run.json."""
        content = _read_json(self.path / "run.json")
        write_atomically(self.path / "run.json", json.dumps(content | values, ensure_ascii=False).encode("utf-8"))

    def events(self, after: int = 0, limit: int = 0) -> list[dict[str, Any]]:
        """Lines of events.jsonl with n > after."""
        return self.log.read(after, limit)

    def manifest(self) -> dict[str, Any]:
        """manifest.json, or {} before it is written."""
        return self._read_migrated(self.manifest_file)

    def plan(self) -> dict[str, Any]:
        """plan.json, or {} before planning has ended."""
        return self._read_migrated(self.plan_file)

    def grid_json(self) -> dict[str, Any]:
        """grid/grid.json with the cells drawn so far; {"cells": [], "best": null} before the first."""
        return {"cells": [], "best": None} | self._read_migrated(self.grid_dir / "grid.json")

    def version_note(self) -> Message | None:
        """The note for a folder that another version of this trainer made, or None."""
        return folder_migrations.version_note(self.info()["version"])

    def _read_migrated(self, file: Path) -> dict[str, Any]:
        content = _read_json(file)
        return folder_migrations.migrate(file.name, content, self.info()["version"]) if content else {}

    def outcome(self, *, running: bool = False) -> str | None:
        """finished, stopped or failed by its last event; "interrupted" if it has none and its process is gone; None while it runs."""
        last = last_events(self.events_file, 1 << 14)
        if last and last[-1]["event"] in ENDED:
            return str(last[-1]["event"])
        return None if running or self.is_alive() else "interrupted"

    def is_alive(self) -> bool:
        """Whether another process is running this (this process's own runs are known to its JobManager)."""
        pid_record = _read_json(self.pid_file)
        if not pid_record:
            return False
        if pid_record.get("machine") != socket.gethostname():
            return time.time() - _last_modified(self.events_file, self.pid_file) < STALE_SECONDS
        return pid_record.get("pid") != os.getpid() and is_process_alive(int(pid_record.get("pid", 0)), str(pid_record.get("mark", "")))

    def claim(self) -> None:
        """Writes the pid file of this process."""
        pid_record = {"pid": os.getpid(), "mark": process_start_time(os.getpid()), "machine": socket.gethostname()}
        write_atomically(self.pid_file, json.dumps(pid_record).encode("utf-8"))

    def release(self) -> None:
        """Removes the pid and control files: the run has ended."""
        with suppress(OSError):  # the folder was deleted during the run, or the disk went read-only: the run has ended all the same
            self.pid_file.unlink(missing_ok=True)
            self.control_file.unlink(missing_ok=True)

    def summary(self, *, running: bool = False) -> dict[str, Any]:
        """One entry of the history; `running`: this process is running it."""
        outcome = self.outcome(running=running)
        info, manifest = self.info(), self.manifest()
        tail = last_events(self.events_file)
        steps = _steps_in(tail)
        stepped: dict[str, Any] = next((line for line in reversed(tail) if line["event"] == "stepped"), {})
        return {
            "id": self.id,
            "name": info["name"],
            "kind": info["kind"],
            "of": info["of"],
            "state": outcome or _current_state(tail),
            "outcome": outcome,
            "started": manifest.get("started") or info["created"],
            "step": max(steps, default=manifest.get("step", 0)),
            "state_step": resume_point.newest_state_step(self.path),
            "total_steps": manifest.get("total_steps") or self.plan().get("total_steps", 0),
            "epoch": stepped.get("epoch", manifest.get("epoch", 0)),
            "best_epoch": (manifest.get("best") or {}).get("epoch"),
            "mb": round(self.size_bytes() / 1e6, 1),
            "files": sum(not file.get("final") for file in manifest.get("files", [])),
        }

    def size_bytes(self) -> int:
        """Size of all files in the folder."""
        return sum(_file_size(Path(folder, name)) for folder, _, names in os.walk(self.path) for name in names)

    # Commands

    def command(self, command: str) -> None:
        """Writes a command to the control file, which the running process reads. Raises ValueError for an unknown command."""
        if command not in COMMANDS:
            raise ValueError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
        self._append_to_control(command)

    def change(self, values: Mapping[str, Any]) -> None:
        """Writes options and their new values (see Control.change) to the control file."""
        self._append_to_control(f"{CHANGE} {json.dumps(dict(values))}")

    def _append_to_control(self, line: str) -> None:
        try:
            unread = self.control_file.read_text(encoding="utf-8")
        except OSError:
            unread = ""
        write_atomically(self.control_file, f"{unread}{line}\n".encode())

    def remove(self) -> None:
        """Deletes the folder; the weights in the output folder are kept."""
        shutil.rmtree(self.path)


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """The folders of all runs, newest first; [] if `runs_dir` does not exist."""
    if not runs_dir.is_dir():
        return []
    folders = [RunFolder(path) for path in runs_dir.iterdir() if path.is_dir() and is_run(path)]
    return sorted(folders, key=lambda folder: folder.info()["created"] or folder.path.stat().st_mtime, reverse=True)


def remove_ended(folders: Iterable[RunFolder]) -> None:
    """Deletes the folders whose run has ended."""
    for folder in folders:
        if folder.outcome() is not None:
            folder.remove()


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "run.json").is_file() or (path / "events.jsonl").is_file()


def _steps_in(tail: list[dict[str, Any]]) -> list[int]:
    """The steps of the events, without those that a resume has discarded."""
    steps: list[int] = []
    for line in tail:
        if line["event"] == "resumed" and line.get("reason") == FROM_STATE:
            steps = [step for step in steps if step <= line["step"]]
        if "step" in line:
            steps.append(line["step"])
    return steps


def _current_state(tail: list[dict[str, Any]]) -> str:
    for line in reversed(tail):
        if line["event"] == "paused":
            return "paused"
        if line["event"] in ("stepped", "resumed"):
            return "training"
        if line["event"] == "phase":
            return PHASE_STATES.get(line["name"].lower(), "planning")
    return "planning"


def _file_size(file: Path) -> int:
    """Size in bytes; 0 for a file that is gone by now: a running job renames and deletes files."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _last_modified(*paths: Path) -> float:
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _cannot_create(path: Path, reason: str) -> TrainerError:
    return TrainerError(
        "the run's folder {folder} cannot be made ({reason}).",
        folder=str(path),
        reason=reason,
        path="save.runs_dir",
        fix="Choose a runs folder that you may write to, on a disk with room.",
    )
