"""The files that a run writes. Each sink is called with every EventRecord, in order, in the run's thread."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.config.files import read_config
from lora_trainer.errors import TrainerError
from lora_trainer.events import Failed, Finished, Resumed, Sampled, Saved, Started, Stepped, Stopped, Validated, Warned
from lora_trainer.files import write_atomically
from lora_trainer.jobs.folder import RunFolder
from lora_trainer.jobs.logs.csv_log import StepsCsv
from lora_trainer.jobs.logs.events_log import EventRecord, finite_or_none, relative_to_folder, truncate_partial_line
from lora_trainer.jobs.logs.tensorboard import TensorBoard
from lora_trainer.jobs.status import FROM_STATE

Sink = Callable[[EventRecord], None]


class EventsFile:
    """events.jsonl: one object per line, flushed at once, so that a killed process loses at most its last line.

    While the disk is full, lines wait in memory and are written with a later one.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder.path
        truncate_partial_line(folder.events_file)
        self._file = folder.events_file.open("ab", buffering=0)
        self._unwritten = b""

    def __call__(self, record: EventRecord) -> None:
        line = json.dumps(record.to_json(self.folder), ensure_ascii=False, default=str)
        self._unwritten += line.encode("utf-8", "backslashreplace") + b"\n"
        self._write()

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]  # where there is little room, only a part is written

    def close(self) -> None:
        """Closes the file."""
        try:
            self._write()
        finally:
            self._file.close()


class ManifestFile:
    """manifest.json: epoch and step of each saved file with its hash, loss, validation loss and previews; plan.json beside it."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        config = folder.config_file
        self.content: dict[str, Any] = {
            "name": folder.info()["name"],
            "outcome": None,
            "config_hash": hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else "",
            "started": 0.0,
            "ended": None,
            "step": 0,
            "total_steps": 0,
            "epoch": 0,
            "epochs": 0,
            "files": [],
            "samples": [],
            "validation": [],
            "best": None,
            "step_seconds": None,
            "active_seconds": 0.0,
            **folder.manifest(),
        }
        self._last_time: float | None = None
        self._loss: float | None = None
        self._seconds = 0.0
        self._steps = 0

    def __call__(self, record: EventRecord) -> None:
        event, content = record.event, self.content
        content["started"] = content["started"] or round(record.time, 3)
        if self._last_time is not None and not isinstance(event, Resumed):  # a pause does not count
            content["active_seconds"] = round(content["active_seconds"] + max(0.0, record.time - self._last_time), 3)
        self._last_time = record.time
        if isinstance(event, Stepped):
            self._loss = finite_or_none(event.loss_average)
            content["step"], content["epoch"] = event.step, event.epoch
            self._seconds, self._steps = self._seconds + event.seconds, self._steps + 1
            content["step_seconds"] = round(self._seconds / self._steps, 4)
            return
        if isinstance(event, Started):
            content["total_steps"] = int(event.plan.get("total_steps") or 0)
            content["epochs"] = int(event.plan.get("epochs") or 0)
            content["outcome"] = content["ended"] = None
            plan = json.dumps(dict(event.plan), ensure_ascii=False, indent=1, default=str)
            write_atomically(self.folder.plan_file, plan.encode("utf-8"))
        elif isinstance(event, Resumed) and event.reason == FROM_STATE:
            self._rewind(event)
        elif isinstance(event, Saved):
            self._add_file(event)
        elif isinstance(event, Validated):
            content["validation"] = [entry for entry in content["validation"] if entry["step"] != event.step]
            content["validation"].append({"step": event.step, "epoch": event.epoch, "loss": finite_or_none(event.loss)})
        elif isinstance(event, Sampled):
            self._add_sample(event)
        elif isinstance(event, (Finished, Stopped, Failed)):
            content["outcome"] = type(event).__name__.lower()
            content["ended"] = round(record.time, 3)
        else:
            return
        self._write()

    def _rewind(self, event: Resumed) -> None:
        """Drops the entries after that step, which is repeated."""
        self.content["step"], self.content["epoch"] = event.step, event.epoch
        for name in ("files", "samples", "validation"):
            self.content[name] = [entry for entry in self.content[name] if entry["step"] <= event.step]

    def _add_file(self, event: Saved) -> None:
        self.content["files"] = [file for file in self.content["files"] if file["path"] != event.path]
        self.content["files"].append(
            {
                "epoch": event.epoch,
                "step": event.step,
                "path": event.path,
                "sha256": event.sha256,
                "bytes": event.bytes,
                "final": event.final,
                "loss": self._loss if event.loss_average is None else finite_or_none(event.loss_average),
                "validation": None,
                "samples": [],
            }
        )

    def _add_sample(self, event: Sampled) -> None:
        path = relative_to_folder(self.folder.path, event.path)
        self.content["samples"] = [sample for sample in self.content["samples"] if sample["path"] != path]
        self.content["samples"].append(
            {"step": event.step, "epoch": event.epoch, "path": path, "prompt": event.prompt, "seed": event.seed, "index": event.index}
        )

    def _write(self) -> None:
        losses = {entry["step"]: entry["loss"] for entry in self.content["validation"]}
        for file in self.content["files"]:
            file["validation"] = losses.get(file["step"])
            file["samples"] = [sample["path"] for sample in self.content["samples"] if sample["step"] == file["step"]]
        self.content["best"] = best_file(self.content["files"])
        write_atomically(self.folder.manifest_file, json.dumps(self.content, ensure_ascii=False, indent=1).encode("utf-8"))


def best_file(files: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The numbered file with the lowest validation loss, the earliest of equals; None without validation."""
    validated = [file for file in files if file["validation"] is not None and not file["final"]]
    if not validated:
        return None
    best = min(validated, key=lambda file: (file["validation"], file["step"]))
    return {key: best[key] for key in ("epoch", "step", "path", "validation")}


class ReportFile:
    """report.txt, written when the run ends: what is needed to diagnose the run."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.traceback: list[str] = []
        self._last: Stepped | None = None
        self._begun = 0.0

    def __call__(self, record: EventRecord) -> None:
        event = record.event
        self._begun = self._begun or record.time
        if isinstance(event, Started):
            self.lines += [f"device       {event.device} {event.dtype}".rstrip(), *_plan_lines(event.plan)]
        elif isinstance(event, Stepped):
            self._last = event
        elif isinstance(event, Warned):
            self.lines.append(f"warning      {event.message}")
        elif isinstance(event, Validated):
            lowest = ", the lowest so far" if event.best else ""
            self.lines.append(f"validation   step {event.step}, epoch {event.epoch}: {event.loss:.5f}{lowest}")
        elif isinstance(event, Saved):
            self.lines.append(f"saved        {event.path}  {event.bytes / 1e6:.1f} MB  sha256 {event.sha256}")
        elif isinstance(event, (Finished, Stopped, Failed)):
            self._end(event, record.time)

    def _end(self, event: Finished | Stopped | Failed, time: float) -> None:
        header = [f"run          {self.folder.id}", f"outcome      {type(event).__name__.lower()} at step {event.step}"]
        header.append(f"took         {time - self._begun:.0f} s")
        if self._last:
            header.append(f"loss         {self._last.loss_average:.5f} (average), {self._last.seconds:.3f} s a step")
        problems = event.problems if isinstance(event, Failed) else ()
        problem_lines = [f"problem      {problem['path']} {problem['message']} {problem['fix']}" for problem in problems]
        text = "\n".join([*header, *version_lines(), *self.lines, *problem_lines, *self.traceback, ""])
        write_atomically(self.folder.report_file, text.encode("utf-8"))


def _plan_lines(plan: Mapping[str, Any]) -> list[str]:
    return [f"plan         {key}: {plan[key]}" for key in ("images", "steps_per_epoch", "epochs", "total_steps") if key in plan]


def version_lines() -> list[str]:
    """Lines with the versions of Python, the system and the main packages, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    lines = [f"python       {platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}"]
    for name in ("torch", "diffusers", "transformers", "safetensors", "gradio"):
        try:
            lines.append(f"{name:<12} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:<12} not installed")
    package = sys.modules.get("lora_trainer")
    return [f"trainer      {getattr(package, '__version__', '')}", *lines]


def standard_sinks(folder: RunFolder) -> list[Sink]:
    """The sinks of every run. Raises TrainerError if the folder is not writable."""
    try:
        return [EventsFile(folder), ManifestFile(folder), ReportFile(folder), *log_sinks(folder)]
    except OSError as error:
        raise TrainerError(
            "{path} cannot be written ({reason}).",
            path=str(Path(folder.path)),
            reason=error.strerror or str(error),
            fix="Choose a folder that you may write to.",
        ) from error


def log_sinks(folder: RunFolder) -> list[Sink]:
    """The additional sinks that the [log] section of a training run's config enables."""
    if folder.info()["kind"] != "train" or not folder.config_file.is_file():
        return []
    try:
        config = read_config(folder.config_file)
    except TrainerError:  # the training itself reports it
        return []
    log, sinks = config.log, list[Sink]()
    if log.csv:
        sinks.append(StepsCsv(folder))
    if log.log_with == "tensorboard" or (log.log_with == "auto" and log.logging_dir.strip()):
        logs = Path(log.logging_dir) if log.logging_dir.strip() else folder.path / "logs"
        sinks.append(TensorBoard(folder, logs, log.log_prefix, log.log_tracker_name))
    return sinks
