"""The events that a run reports: small frozen records, one line each in events.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.messages import Message


@attrs.frozen
class Started:
    """The run starts; `plan` is the JSON of `check`, `processes` the world size."""

    plan: Mapping[str, Any]
    device: str = "cpu"
    dtype: str = "float32"
    processes: int = 1


@attrs.frozen
class Phase:
    """A phase starts: planning, caching, encoding, training, sampling, saving, validating, rendering, ranking."""

    name: str
    total: int = 0


@attrs.frozen
class Progress:
    """`done` items of the current phase's total."""

    done: int


@attrs.frozen
class Stepped:
    """One optimizer step is done. `lr` is the U-Net's rate (or the text encoder's if only that is trained).

    `rates`: each parameter group's rate if there are several. `skipped`: steps of the run so far that were skipped because their
    gradient was not finite. `loss_scale`: the GradScaler's scale, 0 without one.
    """

    step: int
    epoch: int
    loss: float
    loss_average: float
    lr: float
    grad_norm: float
    seconds: float
    vram_mb: float
    rates: Mapping[str, float] = attrs.field(factory=dict)
    skipped: int = 0
    loss_scale: float = 0.0


@attrs.frozen
class Sampled:
    """A preview picture was written; `step` 0 is before any training."""

    step: int
    epoch: int
    path: str
    prompt: str
    seed: int
    index: int = 0


@attrs.frozen
class Validated:
    """Mean squared error over the validation pictures (weight 1, t = 50, 150 .. 950, fixed noise).

    `best`: the lowest since training began.
    """

    step: int
    epoch: int
    loss: float
    best: bool = False


@attrs.frozen
class Saved:
    """A weights file was written, reopened and verified. `final` marks NAME.safetensors.

    Files are written in the background, so this may come some steps after `step`; `loss_average` is that of `step`.
    """

    step: int
    epoch: int
    path: str
    sha256: str
    bytes: int
    final: bool = False
    loss_average: float | None = None


@attrs.frozen
class Rendered:
    """One cell of a grid was drawn."""

    epoch: int
    weight: float
    path: str
    cached: bool = False


@attrs.frozen
class Warned:
    """Something that the user should know; the run continues."""

    message: Message
    path: str = ""


@attrs.frozen
class Changed:
    """A setting was changed during the run."""

    path: str
    old: Any
    new: Any
    step: int


@attrs.frozen
class Paused:
    """The run is paused; lock and device are free. `reason`: user, rest (between epochs) or disk (no space for a file)."""

    step: int
    reason: str = "user"


@attrs.frozen
class Resumed:
    """The run continues after a pause; with reason "state" from a saved state, and everything after `step` is discarded."""

    step: int
    reason: str = "user"
    epoch: int = 0


@attrs.frozen
class Finished:
    """The run ended as planned."""

    step: int
    files: Sequence[str] = ()


@attrs.frozen
class Stopped:
    """The user ended the run early."""

    step: int
    files: Sequence[str] = ()


@attrs.frozen
class Failed:
    """The run ended with an error; `problems` as [{"path", "message", "fix"}] of texts."""

    step: int
    problems: Sequence[Mapping[str, Any]]


Event = (
    Started
    | Phase
    | Progress
    | Stepped
    | Sampled
    | Validated
    | Saved
    | Rendered
    | Warned
    | Changed
    | Paused
    | Resumed
    | Finished
    | Stopped
    | Failed
)


def to_json(event: Event) -> dict[str, Any]:
    """{"event": "stepped", ...}: the line of events.jsonl, without number and time."""
    plain = {field.name: _plain(getattr(event, field.name)) for field in attrs.fields(type(event))}
    return {"event": type(event).__name__.lower(), **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_json()
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
