"""The current status of a run: one frozen record, updated event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.events import (
    Event,
    Failed,
    Finished,
    Paused,
    Phase,
    Progress,
    Rendered,
    Resumed,
    Sampled,
    Saved,
    Started,
    Stepped,
    Stopped,
    Validated,
    Warned,
)
from lora_trainer.jobs.logs.events_log import finite_or_none
from lora_trainer.messages import Message, say

ENDED = ("finished", "stopped", "failed", "interrupted")
PHASE_STATES = {
    "planning": "planning",
    "caching": "caching",
    "encoding": "caching",
    "training": "training",
    "validating": "training",
    "sampling": "sampling",
    "rendering": "sampling",
    "ranking": "sampling",
    "saving": "saving",
}
FROM_STATE = "state"
"""`Resumed.reason` of a run that was resumed from a saved state."""
SPEED_MOMENTUM = 0.9
"""Momentum of the moving average of seconds per step."""


@attrs.frozen
class RunStatus:
    """A run's status. Times in seconds; `seconds_left` is None before the first step; `speed` is seconds per step, of late, or of the
    whole run once it has ended."""

    id: str
    name: str
    kind: str = "train"
    of: str = ""
    """The run that a grid belongs to."""
    state: str = "planning"
    phase: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    epochs: int = 0
    steps_per_epoch: int = 0
    speed: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    loss_average: float | None = None
    lr: float | None = None
    vram_mb: float | None = None
    skipped: int = 0
    loss_scale: float = 0.0
    validation: float | None = None
    best: Mapping[str, Any] | None = None
    """The lowest validation loss so far: step, epoch, loss."""
    sample: str = ""
    saved: int = 0
    warnings: int = 0
    warning: Message | None = None
    device: str = ""
    paused_because: str = ""
    started: float = 0.0
    n: int = 0
    outcome: str | None = None
    problems: Sequence[Mapping[str, Any]] = ()
    overhead: float = 0.0
    """Seconds spent on saving, previews and validation since the first step."""
    overhead_since: float = 0.0
    phase_since: float = 0.0
    seconds_in_steps: float = 0.0
    steps_timed: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.outcome is not None

    def after(self, event: Event, time: float) -> RunStatus:
        """The status once `event` has happened at `time` (seconds since 1970)."""
        change = _CHANGES.get(type(event))
        status = attrs.evolve(self, **change(self, event, time)) if change else self
        return attrs.evolve(status, n=self.n + 1, started=self.started or time)

    def to_json(self, language: str = "en") -> dict[str, Any]:
        """Plain values; warning and problems in the reader's language."""
        plain = {
            field.name: finite_or_none(getattr(self, field.name)) for field in attrs.fields(RunStatus) if field.name not in _INTERNAL_FIELDS
        }
        plain["warning"] = self.warning.text(language) if self.warning else ""
        plain["problems"] = [translate_problem(problem, language) for problem in self.problems]
        plain["error"] = " ".join(f"{problem['message']} {problem['fix']}".strip() for problem in plain["problems"])
        return plain


def translate_problem(problem: Mapping[str, Any], language: str) -> dict[str, str]:
    """A problem of a Failed event as {"path", "message", "fix"} in `language`; its templates are under "words"."""
    if not isinstance(problem, Mapping):  # of a damaged log
        return {"path": "", "message": str(problem), "fix": ""}
    words = problem.get("words")
    words = words if isinstance(words, Mapping) else {}
    return {
        "path": str(problem.get("path", "")),
        **{part: translate_message(words.get(part) or problem.get(part, ""), language) for part in ("message", "fix")},
    }


def translate_message(message: Any, language: str) -> str:
    """The text in `language` of a message from events.jsonl: {"template", "values", "text"}, or plain text."""
    if not isinstance(message, Mapping):
        return str(message)
    try:
        return message_from_json(message).text(language)
    except (ValueError, LookupError, AttributeError):  # the braces of a damaged template
        return str(message.get("text", ""))


def message_from_json(message: Mapping[str, Any] | str) -> Message:
    """A message from its form in events.jsonl."""
    if not isinstance(message, Mapping) or not isinstance(message.get("template"), str):
        return say("{text}", text=str(message.get("text", "")) if isinstance(message, Mapping) else message)
    values = message.get("values")
    values = values if isinstance(values, Mapping) else {}
    nested = {key: message_from_json(value) for key, value in values.items() if isinstance(value, Mapping) and "template" in value}
    return Message(message["template"], {**values, **nested})


def _started(status: RunStatus, event: Started, time: float) -> dict[str, Any]:
    plan = event.plan
    return {
        "total_steps": int(plan.get("total_steps") or 0),
        "epochs": int(plan.get("epochs") or 0),
        "steps_per_epoch": int(plan.get("steps_per_epoch") or 0),
        "device": event.device,
        "outcome": None,
        "problems": (),
    }


def _phase(status: RunStatus, event: Phase, time: float) -> dict[str, Any]:
    state = PHASE_STATES.get(event.name.lower(), "training" if status.step else "planning")
    steps = event.total if event.name == "training" and event.total else status.total_steps  # the length of the run may have changed
    return {
        "total_steps": steps,
        "epochs": -(-steps // status.steps_per_epoch) if status.steps_per_epoch else status.epochs,
        "phase": event.name,
        "state": state,
        "done": 0,
        "total": event.total,
        "phase_since": time,
        "seconds_left": status.seconds_left if status.step and status.kind == "train" else None,
        "overhead_since": status.overhead_since or time,
    }


def _stepped(status: RunStatus, event: Stepped, time: float) -> dict[str, Any]:
    speed = event.seconds if status.speed is None else SPEED_MOMENTUM * status.speed + (1 - SPEED_MOMENTUM) * event.seconds
    overhead = status.overhead
    if status.overhead_since and status.step:  # time before the first step is spent only once
        overhead += max(0.0, time - status.overhead_since - event.seconds)
    steps_left = max(0, status.total_steps - event.step)
    return {
        "state": "training",
        "phase": "training",
        "step": event.step,
        "epoch": event.epoch,
        "speed": speed,
        "seconds_left": steps_left * (speed + overhead / max(1, event.step)),
        "loss": event.loss,
        "loss_average": event.loss_average,
        "lr": event.lr,
        "vram_mb": event.vram_mb,
        "skipped": event.skipped,
        "loss_scale": event.loss_scale,
        "seconds_in_steps": status.seconds_in_steps + event.seconds,
        "steps_timed": status.steps_timed + 1,
        "overhead": overhead,
        "overhead_since": 0.0,
    }


def _resumed(status: RunStatus, event: Resumed, time: float) -> dict[str, Any]:
    values = {"state": "training", "paused_because": "", "overhead_since": 0.0}  # a pause does not count in the time left
    return values | ({"step": event.step, "epoch": event.epoch} if event.reason == FROM_STATE else {})


def _ended(outcome: str, status: RunStatus, event: Any) -> dict[str, Any]:
    speed = status.seconds_in_steps / status.steps_timed if status.steps_timed else status.speed  # of the whole run, as in its manifest
    return {"state": outcome, "outcome": outcome, "seconds_left": 0.0, "step": max(status.step, event.step), "speed": speed}


def _validated(status: RunStatus, event: Validated) -> dict[str, Any]:
    best = {"step": event.step, "epoch": event.epoch, "loss": event.loss} if event.best else status.best
    return {"validation": event.loss, "best": best}


def _progress(status: RunStatus, event: Progress, time: float) -> dict[str, Any]:
    return {"done": event.done} | (_left_of_phase(status, event.done, time) if status.kind == "grid" else {})


def _rendered(status: RunStatus, event: Rendered, time: float) -> dict[str, Any]:
    return {"done": status.done + 1, "sample": event.path, **_left_of_phase(status, status.done + 1, time)}


def _left_of_phase(status: RunStatus, done: int, time: float) -> dict[str, Any]:
    """The time left of a grid's phase; unknown once all of it is done, since another phase may follow."""
    left = max(0, status.total - done)
    return {"seconds_left": left * (time - status.phase_since) / done if left and done else None}


_INTERNAL_FIELDS = ("overhead", "overhead_since", "phase_since", "seconds_in_steps", "steps_timed")
_CHANGES: dict[type, Any] = {
    Started: _started,
    Phase: _phase,
    Progress: _progress,
    Stepped: _stepped,
    Sampled: lambda status, event, time: {"sample": event.path},
    Validated: lambda status, event, time: _validated(status, event),
    Saved: lambda status, event, time: {"saved": status.saved + (not event.final)},
    Rendered: _rendered,
    Warned: lambda status, event, time: {"warnings": status.warnings + 1, "warning": event.message},
    Paused: lambda status, event, time: {"state": "paused", "paused_because": event.reason},
    Resumed: _resumed,
    Finished: lambda status, event, time: _ended("finished", status, event),
    Stopped: lambda status, event, time: _ended("stopped", status, event),
    Failed: lambda status, event, time: _ended("failed", status, event) | {"problems": event.problems},
}
