"""A run's folder: its files, and reading them whether the run is going on, has ended, or was killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.control import CHANGE, COMMANDS, inbox_lock, lock_path
from lora_trainer.errors import HostBusy, Problem, TrainerError
from lora_trainer.files import write_atomically
from lora_trainer.jobs import claims, folder_migrations, resume_point
from lora_trainer.jobs.claims import AlreadyClaimed, Claim
from lora_trainer.jobs.logs.events_log import DAMAGED, EventsLog, damaged_lines, last_events
from lora_trainer.jobs.run_files import GRID, INFO, MANIFEST, PLAN, Fields, keep_intact, read_object
from lora_trainer.jobs.status import ENDED, FROM_STATE, PHASE_STATES
from lora_trainer.messages import Message, say

PID = "pid"
CACHED_RUNS = 10_000
Stamps = tuple[str | int, ...]
"""Name, size, time and number of each entry of a folder."""


@attrs.frozen(eq=False)
class RunFolder:
    """`config.toml plan.json events.jsonl manifest.json report.txt samples/ state/ grid/ control`; its name is the run's id."""

    path: Path
    log: EventsLog = attrs.field(init=False)
    _new_claims: list[Claim] = attrs.field(init=False, factory=list)
    """The claim of a folder that was just created, until `claim` returns it."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "log", EventsLog(self.path / "events.jsonl"))

    @classmethod
    def create(cls, runs_dir: Path, name: str, *, kind: str = "train", of: str = "") -> RunFolder:
        """A new folder NAME, or NAME-v2, NAME-v3 ... if that exists: concurrent processes never get the same one.

        `kind` is "train" or "grid", `of` the run that a grid belongs to. It is claimed before others can take it for a run. Raises
        TrainerError if it cannot be created.
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
        folder._new_claims.append(folder._take_claim())
        folder.update_info(version=folder_migrations.VERSION, name=path.name, kind=kind, of=of, created=round(time.time(), 3))
        return folder

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.path.name

    info_file = property(lambda self: self.path / "run.json")
    config_file = property(lambda self: self.path / "config.toml")
    plan_file = property(lambda self: self.path / "plan.json")
    events_file = property(lambda self: self.path / "events.jsonl")
    manifest_file = property(lambda self: self.path / "manifest.json")
    report_file = property(lambda self: self.path / "report.txt")
    control_file = property(lambda self: self.path / "control")
    pid_file = property(lambda self: self.path / PID)
    samples_dir = property(lambda self: self.path / "samples")
    grid_dir = property(lambda self: self.path / "grid")

    # Reading

    def info(self) -> dict[str, Any]:
        """{"version", "name", "kind", "of", "created"} of run.json; `name` defaults to the folder's name."""
        version, content, _ = self._read_info()
        return {"name": self.id, "kind": "train", "of": "", "created": 0.0} | content | {"version": version}

    def _read_info(self) -> tuple[int, dict[str, Any], tuple[Message, ...]]:
        """The folder's version, the intact values of run.json, and what is damaged in it."""
        try:
            stat = self.info_file.stat()
        except OSError:
            return _read_info(self.info_file)
        return _cached_info(self.info_file, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))

    def update_info(self, **values: Any) -> None:
        """Updates values of run.json."""
        content, _ = read_object(self.info_file)
        write_atomically(self.info_file, json.dumps(content | values, ensure_ascii=False).encode("utf-8"))

    def events(self, after: int = 0, limit: int = 0) -> list[dict[str, Any]]:
        """Lines of events.jsonl with n > after."""
        return self.log.read(after, limit)

    def manifest(self) -> dict[str, Any]:
        """manifest.json, or {} before it is written; without what is damaged, as all of these."""
        return self._read(self.manifest_file, MANIFEST)[0]

    def plan(self) -> dict[str, Any]:
        """plan.json, or {} before planning has ended."""
        return self._read(self.plan_file, PLAN)[0]

    def grid_json(self) -> dict[str, Any]:
        """grid/grid.json with the cells drawn so far; {"cells": [], "best": null} before the first."""
        return {"cells": [], "best": None} | self._read(self.grid_dir / "grid.json", GRID)[0]

    def version_note(self) -> Message | None:
        """The note for a folder that another version of this trainer made, or None."""
        return folder_migrations.version_note(self.info()["version"])

    def _read(self, file: Path, fields: Fields) -> tuple[dict[str, Any], list[Message]]:
        """The intact values of a file, in the current format, and what is damaged in it."""
        content, damage = read_object(file)
        if not content:
            return {}, [damage] if damage is not None else []
        return keep_intact(folder_migrations.migrate(file.name, content, self.info()["version"]), fields, file.name)

    def damage(self) -> list[Problem]:
        """What is damaged in the files that the list of runs shows; [] for an intact run."""
        messages = [*self._read_info()[2], *self._read(self.manifest_file, MANIFEST)[1], *self._read(self.plan_file, PLAN)[1]]
        events = self.events_file
        if os.path.lexists(events) and not events.is_file():
            messages.append(say("{file} is not a file.", file=events.name))
        elif events.exists() and not os.access(events, os.R_OK):
            messages.append(say("{file} cannot be read.", file=events.name))
        elif count := damaged_lines(events):
            messages.append(say("{file}: damaged lines ({count}).", file=events.name, count=count))
        fix = say("Restore the file from a copy, or delete the run. Its weights are in the output folder.")
        return [Problem(str(self.path), message, fix) for message in messages]

    def outcome(self, *, running: bool = False) -> str | None:
        """finished, stopped or failed by its last event; "interrupted" if it has none and its process is gone; None while it runs."""
        last = last_events(self.events_file, 1 << 14)
        if last and last[-1]["event"] in ENDED:
            return str(last[-1]["event"])
        return None if running or self.is_alive() else "interrupted"

    def is_alive(self) -> bool:
        """Whether another process is running this (this process's own runs are known to its JobManager)."""
        return claims.is_held(self.pid_file, others=(self.events_file,), besides_own=True)

    def claim(self) -> Claim:
        """Makes this process, and in it only the caller, the one that may write the run; to be called before anything is written.

        Returns the claim of `create`, or of the process that started this one, if there is one. Raises HostBusy while another holds it.
        """
        with suppress(IndexError):
            return self._new_claims.pop()
        return Claim.handed_over(self.pid_file) or self._take_claim()

    def _take_claim(self) -> Claim:
        try:
            return Claim.take(self.pid_file, others=(self.events_file,))
        except AlreadyClaimed:
            raise HostBusy(
                "the run {run} is still going on.", run=self.id, path="run", fix="Stop it, or wait until it has ended."
            ) from None
        except OSError as error:
            raise TrainerError(
                "{path} cannot be written ({reason}).",
                path=str(self.path),
                reason=error.strerror or str(error),
                fix="Choose a folder that you may write to.",
            ) from error

    @contextmanager
    def claimed(self) -> Iterator[Claim]:
        """As `claim`, released at the end of the block."""
        claim = self.claim()
        try:
            yield claim
        finally:
            self.release(claim)

    def release(self, claim: Claim) -> None:
        """Gives the claim back and drops commands that were not read: the run has ended."""
        if claim.release():
            with suppress(OSError):
                self.control_file.unlink(missing_ok=True)
                lock_path(self.control_file).unlink(missing_ok=True)

    def summary(self, *, running: bool = False, language: str = "en") -> dict[str, Any]:
        """One entry of the history; `running`: this process is running it. A damaged run has the state "damaged", and "problems"."""
        fingerprint = None if running else _fingerprint(str(self.path))
        entry = _cached_entry(str(self.path), fingerprint) if fingerprint else self._entry(running=running)
        return entry.to_json(language)

    def _entry(self, *, running: bool) -> HistoryEntry:
        summary, problems = self._summarise(running=running)
        return HistoryEntry(self.info()["created"] or _last_modified(self.path), summary, problems)

    def _summarise(self, *, running: bool) -> tuple[dict[str, Any], list[Problem]]:
        outcome = self.outcome(running=running)
        info, manifest = self.info(), self.manifest()
        problems = self.damage() if outcome is not None else []  # of a run that goes on, a file may be half written
        tail = last_events(self.events_file)
        steps = _steps_in(tail)
        stepped: dict[str, Any] = next((line for line in reversed(tail) if line["event"] == "stepped"), {})
        summary = {
            "id": self.id,
            "name": info["name"],
            "kind": info["kind"],
            "of": info["of"],
            "state": DAMAGED if problems else outcome or _current_state(tail),
            "outcome": outcome,
            "started": manifest.get("started") or info["created"],
            "step": max(steps, default=manifest.get("step", 0)),
            "state_step": resume_point.newest_state_step(self.path),
            "total_steps": manifest.get("total_steps") or self.plan().get("total_steps", 0),
            "epoch": stepped.get("epoch", manifest.get("epoch", 0)),
            "best_epoch": (manifest.get("best") or {}).get("epoch"),
            "mb": round(self.size_bytes() / 1e6, 1),
            "files": sum(not file["final"] for file in manifest.get("files", [])),
        }
        return summary, problems

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
        with inbox_lock(self.control_file):
            try:
                unread = self.control_file.read_text(encoding="utf-8")
            except (OSError, ValueError):
                unread = ""
            write_atomically(self.control_file, f"{unread}{line}\n".encode())

    def remove(self) -> None:
        """Deletes the folder; the weights in the output folder are kept. It is renamed first, so that no part of it looks like a run."""
        doomed = self.path.with_name(f".{self.id[:40]}.{secrets.token_hex(4)}.deleted")
        try:
            self.path.replace(doomed)
        except OSError:  # a file in it is open (Windows)
            doomed = self.path
        shutil.rmtree(doomed)


@attrs.frozen
class HistoryEntry:
    """A run in the history; `created` in seconds since 1970."""

    created: float
    summary: Mapping[str, Any]
    problems: Sequence[Problem]

    def to_json(self, language: str) -> dict[str, Any]:
        """The summary with its "problems" in the reader's language."""
        return {**self.summary, "problems": [problem.to_json(language) for problem in self.problems] if self.problems else []}


def history(runs_dir: Path, *, kinds: Sequence[str], running: str = "", language: str = "en") -> list[dict[str, Any]]:
    """Summaries of the runs in a folder, newest first; `running`: the path of the one that this process is running."""
    entries = []
    for path in _run_paths(runs_dir):
        fingerprint = None if path == running else _fingerprint(path)
        entries.append(_cached_entry(path, fingerprint) if fingerprint else RunFolder(Path(path))._entry(running=path == running))
    of_kinds = [entry for entry in entries if entry.summary["kind"] in kinds]
    return [entry.to_json(language) for entry in sorted(of_kinds, key=lambda entry: (entry.created, entry.summary["id"]), reverse=True)]


def _run_paths(runs_dir: Path) -> list[str]:
    """The paths of all runs. As text: a Path for each of hundreds would cost more than reading the folder."""
    with suppress(OSError), os.scandir(runs_dir) as entries:
        return [entry.path for entry in entries if not entry.name.startswith(".") and is_run(entry.path)]
    return []


def _fingerprint(run: str) -> Stamps | None:
    """Names, sizes and times of what is in a folder; None if that does not say all: a process holds the run, or it cannot be read."""
    stamps: list[str | int] = []
    try:
        with os.scandir(run) as entries:
            for entry in entries:
                if entry.name == PID:
                    return None
                stat = entry.stat(follow_symlinks=False)
                stamps += (entry.name, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError:
        return None
    return tuple(stamps)


@lru_cache(maxsize=CACHED_RUNS)
def _cached_entry(path: str, _fingerprint: Stamps) -> HistoryEntry:
    return RunFolder(Path(path))._entry(running=False)


@lru_cache(maxsize=CACHED_RUNS)
def _cached_info(file: Path, _stamp: tuple[int, ...]) -> tuple[int, dict[str, Any], tuple[Message, ...]]:
    return _read_info(file)


def _read_info(file: Path) -> tuple[int, dict[str, Any], tuple[Message, ...]]:
    content, damage = read_object(file)
    version = folder_migrations.version_of(content)
    intact, damaged_values = keep_intact(folder_migrations.migrate(file.name, content, version), INFO, file.name)
    return version, intact, (*([] if damage is None else [damage]), *damaged_values)


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """The folders of all runs, newest first; [] if `runs_dir` does not exist."""
    folders = [RunFolder(Path(path)) for path in _run_paths(runs_dir)]
    return sorted(folders, key=lambda folder: (folder.info()["created"] or _last_modified(folder.path), folder.id), reverse=True)


def remove_ended(folders: Iterable[RunFolder]) -> None:
    """Deletes the folders whose run has ended."""
    for folder in folders:
        with suppress(HostBusy), folder.claimed():
            folder.remove()


def is_run(path: Path | str) -> bool:
    """Whether a folder holds a run, be it a damaged one."""
    return os.path.lexists(f"{path}/run.json") or os.path.lexists(f"{path}/events.jsonl")


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


def _last_modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _cannot_create(path: Path, reason: str) -> TrainerError:
    return TrainerError(
        "the run's folder {folder} cannot be made ({reason}).",
        folder=str(path),
        reason=reason,
        path="save.runs_dir",
        fix="Choose a runs folder that you may write to, on a disk with room.",
    )
