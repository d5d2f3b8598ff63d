"""Where a run is: all that changes from step to step besides the network and its optimizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.train.early_stop import EarlyStop
from lora_trainer.train.planning.plan import TrainingPlan


@attrs.define(eq=False)
class TrainingProgress:
    """The course that a run takes, and how far it is on it; the loop moves it, the others read it.

    `step` counts optimizer steps, `epoch` is the one that goes on (1 is the first, 0 before it), `groups` the steps done in it.
    `preview` is the first picture of those drawn at step `sampled_at`. `changes` are the settings that were changed on the way, as
    {"path", "old", "new", "step"}; `began` is when the run began (seconds since 1970), `skipped` how many steps had no usable gradient.
    `saves` tells of each file its step, its epoch, whether it is the final one, and the average loss then; `states` counts what was kept.
    """

    plan: TrainingPlan
    step: int = 0
    epoch: int = 0
    groups: int = 0
    files: list[Path] = attrs.field(factory=list)
    saves: dict[str, tuple[int, int, bool, float]] = attrs.field(factory=dict)
    sampled_at: int = -1
    preview: Path | None = None
    validated_at: int = -1
    early: EarlyStop = attrs.field(factory=EarlyStop)
    ended: bool = False
    changes: list[dict[str, Any]] = attrs.field(factory=list)
    began: float = 0.0
    skipped: int = 0
    states: int = 0
    recent: deque[float] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.recent = deque(maxlen=max(1, self.plan.steps_per_epoch))

    @property
    def over(self) -> bool:
        """Whether every planned step is done, or validation has ended the run early."""
        return self.ended or self.step >= self.plan.total_steps

    @property
    def epoch_ends(self) -> bool:
        """Whether all steps of this epoch are done; true also before the first."""
        return self.epoch == 0 or self.groups >= self.plan.steps_per_epoch

    def next_epoch(self) -> None:
        """The next one begins."""
        self.epoch, self.groups = self.epoch + 1, 0

    def stepped(self, loss: float) -> None:
        """One optimizer step is done, with this loss."""
        self.step += 1
        self.groups += 1
        self.recent.append(loss)

    @property
    def loss_average(self) -> float:
        """Mean loss of the last epoch's number of steps."""
        return sum(self.recent) / len(self.recent)

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "files": [str(path) for path in self.files],
            "saves": dict(self.saves),
            "preview": None if self.preview is None else str(self.preview),
            "changes": list(self.changes),
            "recent": list(self.recent),
            "early": self.early.to_plain(),
            "steps_per_epoch": self.plan.steps_per_epoch,
            "total_steps": self.plan.total_steps,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Takes back what `to_plain` gave, but for the changes, which were made before."""
        for name in _NUMBERS:
            setattr(self, name, plain[name])
        self.files = [Path(text) for text in plain["files"]]
        self.saves = {path: (step, epoch, final, average) for path, (step, epoch, final, average) in plain["saves"].items()}
        self.preview = Path(plain["preview"]) if plain["preview"] else None
        self.recent.extend(plain["recent"])
        self.early.restore(plain["early"])
        if plain["total_steps"] != self.plan.total_steps:
            self.early.waited = 0  # a run that is prolonged is given time anew
        self.ended = self.early.ended


_NUMBERS = ("step", "epoch", "groups", "sampled_at", "validated_at", "began", "skipped", "states")
