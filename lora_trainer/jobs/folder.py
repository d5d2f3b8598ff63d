"""A run's folder: what is in it, and reading it while the run goes on, ended, or died."""

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
from lora_trainer.jobs.process import process_alive, process_mark
from lora_trainer.jobs.status import ENDED, FROM_STATE, PHASE_STATES
from lora_trainer.messages import Message

STALE_SECONDS = 600
"""A run of another machine that wrote nothing for this long is taken for dead."""


@attrs.frozen(eq=False)
class RunFolder:
    """`config.toml plan.json events.jsonl manifest.json report.txt samples/ state/ grid/ control`; its name is the run's id."""

    path: Path
    log: EventsLog = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "log", EventsLog(self.path / "events.jsonl"))

    @classmethod
    def create(cls, runs_dir: Path, name: str, *, kind: str = "train", of: str = "") -> RunFolder:
        """A new folder NAME, or NAME-v2, NAME-v3 ... where that is taken: two processes at once never get the same one.

        `kind` is "train" or "grid", `of` the run that a grid belongs to. Raises TrainerError when it cannot be made.
        """
        tried = 1
        while True:
            path = runs_dir / (name if tried == 1 else f"{name}-v{tried}")
            try:
                runs_dir.mkdir(parents=True, exist_ok=True)
                path.mkdir()
                break
            except FileExistsError:
                if not runs_dir.is_dir():
                    raise _cannot_make(path, "a file is in the way") from None
                tried += 1
            except OSError as error:
                raise _cannot_make(path, error.strerror or str(error)) from error
        folder = cls(path)
        folder.describe(version=folder_migrations.VERSION, name=path.name, kind=kind, of=of, created=round(time.time(), 3))
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
    samples = property(lambda self: self.path / "samples")
    grid = property(lambda self: self.path / "grid")

    # What the run is

    def about(self) -> dict[str, Any]:
        """{"version", "name", "kind", "of", "created"}; the folder's name where nothing is written."""
        known = _read_json(self.path / "run.json")
        version = folder_migrations.version_of(known)
        return (
            {"name": self.id, "kind": "train", "of": "", "created": 0.0}
            | folder_migrations.brought("run.json", known, version)
            | {"version": version}
        )

    def describe(self, **values: Any) -> None:
        """Writes values of `about`."""
        known = _read_json(self.path / "run.json")
        write_atomically(self.path / "run.json", json.dumps(known | values, ensure_ascii=False).encode("utf-8"))

    def events(self, after: int = 0, limit: int = 0) -> list[dict[str, Any]]:
        """Lines of events.jsonl with n > after."""
        return self.log.read(after, limit)

    def manifest(self) -> dict[str, Any]:
        """manifest.json, or {} while nothing was saved."""
        return self._brought(self.manifest_file)

    def plan(self) -> dict[str, Any]:
        """plan.json, or {} before planning ended."""
        return self._brought(self.plan_file)

    def grid_json(self) -> dict[str, Any]:
        """grid/grid.json as far as it is drawn; {"cells": [], "best": null} before."""
        return {"cells": [], "best": None} | self._brought(self.grid / "grid.json")

    def note(self) -> Message | None:
        """What to tell of a folder that another version of this trainer made."""
        return folder_migrations.note(self.about()["version"])

    def _brought(self, file: Path) -> dict[str, Any]:
        content = _read_json(file)
        return folder_migrations.brought(file.name, content, self.about()["version"]) if content else {}

    def outcome(self, *, running: bool = False) -> str | None:
        """finished, stopped or failed by its last event; "interrupted" when it has none and its process is gone; None while it runs."""
        last = last_events(self.events_file, 1 << 14)
        if last and last[-1]["event"] in ENDED:
            return str(last[-1]["event"])
        return None if running or self.alive() else "interrupted"

    def alive(self) -> bool:
        """Whether another process runs this (the own process knows its runs by its JobManager)."""
        owner = _read_json(self.pid_file)
        if not owner:
            return False
        if owner.get("machine") != socket.gethostname():
            return time.time() - _changed(self.events_file, self.pid_file) < STALE_SECONDS
        return owner.get("pid") != os.getpid() and process_alive(int(owner.get("pid", 0)), str(owner.get("mark", "")))

    def claim(self) -> None:
        """Notes that this process runs it."""
        owner = {"pid": os.getpid(), "mark": process_mark(os.getpid()), "machine": socket.gethostname()}
        write_atomically(self.pid_file, json.dumps(owner).encode("utf-8"))

    def release(self) -> None:
        """The run ended."""
        with suppress(OSError):  # a folder that was deleted under the run, or a disk that went read-only: it ended all the same
            self.pid_file.unlink(missing_ok=True)
            self.control_file.unlink(missing_ok=True)

    def summary(self, *, running: bool = False) -> dict[str, Any]:
        """One line of the history; `running` when this process runs it."""
        outcome = self.outcome(running=running)
        about, manifest = self.about(), self.manifest()
        tail = last_events(self.events_file)
        steps = _steps(tail)
        stepped: dict[str, Any] = next((line for line in reversed(tail) if line["event"] == "stepped"), {})
        return {
            "id": self.id,
            "name": about["name"],
            "kind": about["kind"],
            "of": about["of"],
            "state": outcome or _state(tail),
            "outcome": outcome,
            "started": manifest.get("started") or about["created"],
            "step": max(steps, default=manifest.get("step", 0)),
            "state_step": resume_point.newest_step(self.path),
            "total_steps": manifest.get("total_steps") or self.plan().get("total_steps", 0),
            "epoch": stepped.get("epoch", manifest.get("epoch", 0)),
            "best_epoch": (manifest.get("best") or {}).get("epoch"),
            "mb": round(self.bytes() / 1e6, 1),
            "files": sum(not file.get("final") for file in manifest.get("files", [])),
        }

    def bytes(self) -> int:
        """Size of everything in the folder."""
        return sum(_size(Path(place, name)) for place, _, names in os.walk(self.path) for name in names)

    # What may be done to it

    def command(self, word: str) -> None:
        """Writes a command where the running process looks for it. Raises ValueError for an unknown word."""
        if word not in COMMANDS:
            raise ValueError(f"unknown command {word!r}; known: {', '.join(COMMANDS)}")
        self._tell(word)

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Writes options and their new values (see Control.change) where the running process looks for them."""
        self._tell(f"{CHANGE} {json.dumps(dict(wanted))}")

    def _tell(self, line: str) -> None:
        try:
            unread = self.control_file.read_text(encoding="utf-8")
        except OSError:
            unread = ""
        write_atomically(self.control_file, f"{unread}{line}\n".encode())

    def remove(self) -> None:
        """Deletes the folder; the weights in the output folder stay."""
        shutil.rmtree(self.path)


def runs_in(runs_dir: Path) -> list[RunFolder]:
    """Every run's folder, newest first; [] when there is no such folder."""
    if not runs_dir.is_dir():
        return []
    found = [RunFolder(path) for path in runs_dir.iterdir() if path.is_dir() and is_run(path)]
    return sorted(found, key=lambda folder: folder.about()["created"] or folder.path.stat().st_mtime, reverse=True)


def remove_ended(folders: Iterable[RunFolder]) -> None:
    """Deletes those whose run is over."""
    for folder in folders:
        if folder.outcome() is not None:
            folder.remove()


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / "run.json").is_file() or (path / "events.jsonl").is_file()


def _steps(tail: list[dict[str, Any]]) -> list[int]:
    """The steps that the lines tell of, without those that a resume has taken back."""
    found: list[int] = []
    for line in tail:
        if line["event"] == "resumed" and line.get("reason") == FROM_STATE:
            found = [step for step in found if step <= line["step"]]
        if "step" in line:
            found.append(line["step"])
    return found


def _state(tail: list[dict[str, Any]]) -> str:
    for line in reversed(tail):
        if line["event"] == "paused":
            return "paused"
        if line["event"] in ("stepped", "resumed"):
            return "training"
        if line["event"] == "phase":
            return PHASE_STATES.get(line["name"].lower(), "planning")
    return "planning"


def _size(file: Path) -> int:
    """0 for a file that is gone by now: a run writes beside, and renames."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _changed(*paths: Path) -> float:
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _cannot_make(path: Path, reason: str) -> TrainerError:
    return TrainerError(
        "the run's folder {folder} cannot be made ({reason}).",
        folder=str(path),
        reason=reason,
        path="save.runs_dir",
        fix="Choose a runs folder that you may write to, on a disk with room.",
    )
