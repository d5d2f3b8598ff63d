"""Where a run is: all that changes from step to step besides the network and its optimizer."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import attrs

from lora_trainer.train.plan import TrainingPlan


@attrs.define(eq=False)
class Course:
    """The course that a run takes, and how far it is on it; the loop moves it, the others read it.

    `step` counts optimizer steps, `epoch` is the one that goes on (1 is the first, 0 before it), `groups` the steps done in it.
    `preview` is the first picture of those drawn at step `sampled_at`.
    """

    plan: TrainingPlan
    step: int = 0
    epoch: int = 0
    groups: int = 0
    files: list[Path] = attrs.field(factory=list)
    sampled_at: int = -1
    preview: Path | None = None
    validated_at: int = -1
    recent: deque[float] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.recent = deque(maxlen=max(1, self.plan.steps_per_epoch))

    @property
    def over(self) -> bool:
        """Whether every planned step is done."""
        return self.step >= self.plan.total_steps

    def stepped(self, loss: float) -> None:
        """One optimizer step is done, with this loss."""
        self.step += 1
        self.groups += 1
        self.recent.append(loss)

    @property
    def loss_average(self) -> float:
        """Mean loss of the last epoch's number of steps."""
        return sum(self.recent) / len(self.recent)
