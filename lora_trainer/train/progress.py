"""How far a run has come: everything that changes from step to step besides the network and its optimizer."""

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
    """The plan of a run and how much of it is done; the loop moves it, everything else reads it.

    `step` counts optimizer steps; `epoch` is the current epoch (1 is the first, 0 before it), with `step_in_epoch` of its steps done.
    `preview_path` is the first of the previews drawn at step `sampled_at`. `changes` are the settings that were changed during the run,
    as {"path", "old", "new", "step"}. `started_at` is in seconds since 1970, `skipped` counts steps without a usable gradient,
    `state_count` the states saved so far. `saves`: path of a file -> its step, its epoch, whether it is the final one, average loss.
    """

    plan: TrainingPlan
    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    files: list[Path] = attrs.field(factory=list)
    saves: dict[str, tuple[int, int, bool, float]] = attrs.field(factory=dict)
    sampled_at: int = -1
    preview_path: Path | None = None
    validated_at: int = -1
    early_stop: EarlyStop = attrs.field(factory=EarlyStop)
    stopped_early: bool = False
    changes: list[dict[str, Any]] = attrs.field(factory=list)
    started_at: float = 0.0
    skipped: int = 0
    state_count: int = 0
    recent_losses: deque[float] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.recent_losses = deque(maxlen=max(1, self.plan.steps_per_epoch))

    @property
    def steps_taken(self) -> int:
        """Steps that the optimizer has taken: a step without a usable gradient is counted, and skipped."""
        return self.step - self.skipped

    @property
    def is_done(self) -> bool:
        """Whether every planned step is done, or validation has ended the run early."""
        return self.stopped_early or self.step >= self.plan.total_steps

    @property
    def is_epoch_done(self) -> bool:
        """Whether all steps of this epoch are done; true also before the first."""
        return self.epoch == 0 or self.step_in_epoch >= self.plan.steps_per_epoch

    def begin_epoch(self) -> None:
        """Moves to the next epoch."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def count_step(self, loss: float) -> None:
        """Counts an optimizer step with this loss."""
        self.step += 1
        self.step_in_epoch += 1
        self.recent_losses.append(loss)

    @property
    def loss_average(self) -> float:
        """Mean loss of the last steps, as many as an epoch has."""
        return sum(self.recent_losses) / len(self.recent_losses)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for state.json."""
        return {
            **{key: getattr(self, name) for key, name in _NUMBERS.items()},
            "files": [str(path) for path in self.files],
            "saves": dict(self.saves),
            "preview": None if self.preview_path is None else str(self.preview_path),
            "changes": list(self.changes),
            "recent": list(self.recent_losses),
            "early": self.early_stop.to_plain(),
            "steps_per_epoch": self.plan.steps_per_epoch,
            "total_steps": self.plan.total_steps,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Takes the values of `to_plain`, except for the changes, which LiveChanges restores."""
        for key, name in _NUMBERS.items():
            setattr(self, name, plain[key])
        self.files = [Path(text) for text in plain["files"]]
        self.saves = {path: (step, epoch, final, average) for path, (step, epoch, final, average) in plain["saves"].items()}
        self.preview_path = Path(plain["preview"]) if plain["preview"] else None
        self.recent_losses.extend(plain["recent"])
        self.early_stop.restore(plain["early"])
        if plain["total_steps"] != self.plan.total_steps:
            self.early_stop.wait_count = 0  # a run that was made longer waits anew
        self.stopped_early = self.early_stop.should_stop


_NUMBERS = {
    "step": "step",
    "epoch": "epoch",
    "groups": "step_in_epoch",
    "sampled_at": "sampled_at",
    "validated_at": "validated_at",
    "began": "started_at",
    "skipped": "skipped",
    "states": "state_count",
}
"""Key in state.json -> field."""
