"""Settings that are changed during a run: they hold from the next step on, and in a resumed run too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_trainer.config.live_settings import apply_live_changes
from lora_trainer.errors import TrainerError
from lora_trainer.events import Changed, Event, Phase, Warned
from lora_trainer.host.base import message_with_fix
from lora_trainer.messages import say
from lora_trainer.train import setup
from lora_trainer.train.planning.plan import TrainingPlan
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.trainer import Trainer

RISE, NOTICEABLE = 2.0, 0.05
"""A learning rate that becomes so many times as high, by so large a share of the highest, is told."""


class LiveChanges:
    """Changes the settings of one run. `make_plan` gives the plan of a config.

    `pending` are changes that a killed process made after its last state: they are applied again at their steps.
    """

    def __init__(self, trainer: Trainer, progress: TrainingProgress, make_plan: Callable[[Any], TrainingPlan]) -> None:
        self.trainer, self.progress, self.make_plan = trainer, progress, make_plan
        self.pending: list[Mapping[str, Any]] = []

    def apply(self, values: Mapping[str, Any]) -> Iterator[Event]:
        """Applies changes (path -> value), all or none: a refused one is a warning. A run of another length begins its phase anew."""
        plan_before = self.progress.plan
        yield from self._apply(values)
        yield from self._rate_warnings(plan_before, values)

    def _apply(self, values: Mapping[str, Any]) -> Iterator[Event]:
        total_before = self.progress.plan.total_steps
        try:
            config, changes = apply_live_changes(self.trainer.config, values)
            self._apply_config(config)
        except TrainerError as error:
            yield Warned(message_with_fix(error), error.problems[0].path)
            return
        for change in changes:
            self.progress.changes.append({**change, "step": self.progress.step})
            yield Changed(change["path"], change["old"], change["new"], self.progress.step)
        if self.progress.plan.total_steps != total_before:
            yield Phase("training", self.progress.plan.total_steps)

    def _rate_warnings(self, before: TrainingPlan, paths: Iterable[str]) -> Iterator[Event]:
        """A warning where another length alone makes the learning rate rise: most schedules span the whole run."""
        plan, step = self.progress.plan, self.progress.step
        if plan.total_steps == before.total_steps or not all(path.startswith("steps.") for path in paths):
            return
        old, new = before.schedule.factor(max(0, step - 1)), plan.schedule.factor(step)
        highest = max((rate for _, rate in plan.rates), default=0.0)
        if not step or new < RISE * old or new - old < NOTICEABLE:
            return
        message = say(
            "The learning rate rises from {before} to {after} at step {step}: the schedule {name} spans the whole run, which is longer "
            "now. To go on at a low rate, choose the schedule constant and that rate.",
            before=f"{old * highest:.2g}",
            after=f"{new * highest:.2g}",
            step=step,
            name=self.trainer.config.schedule.type,
        )
        yield Warned(message, "schedule.type")

    def replay(self) -> Iterator[Event]:
        """Applies the pending changes of this step."""
        plan_before, paths = self.progress.plan, []
        while self.pending and self.pending[0]["step"] <= self.progress.step:
            change = self.pending.pop(0)
            paths.append(change["path"])
            yield from self._apply({change["path"]: change["new"]})
        yield from self._rate_warnings(plan_before, paths)

    def restore(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Applies what had been changed by the time that a state was saved."""
        config = self.trainer.config
        for change in changes:
            config, _ = apply_live_changes(config, {change["path"]: change["new"]})
        self._apply_config(config)
        self.progress.changes = [dict(change) for change in changes]

    def _apply_config(self, config: Any) -> None:
        """Plan and learning rates of a new config. Raises TrainerError before anything is changed."""
        trainer, plan = self.trainer, self.make_plan(config)
        param_groups = setup.plan_param_groups(config, trainer.adapter)
        trainer.config, self.progress.plan = config, plan
        trainer.optimizer.set_learning_rates({group.name: group.lr for group in param_groups})
