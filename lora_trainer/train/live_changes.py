"""Settings that are changed while a run goes on: from the next step on they hold, and a resumed run follows them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_trainer.config.live_settings import changed
from lora_trainer.errors import TrainerError
from lora_trainer.events import Changed, Event, Phase, Warned
from lora_trainer.host.base import with_remedy
from lora_trainer.train import setup
from lora_trainer.train.planning.plan import TrainingPlan
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.trainer import Trainer


class LiveChanges:
    """Changes the settings of one run. `plan` makes the plan of a config anew.

    `coming` are changes that a killed process made after its last state: they are made again at their steps.
    """

    def __init__(self, trainer: Trainer, course: TrainingProgress, plan: Callable[[Any], TrainingPlan]) -> None:
        self.trainer, self.course, self.plan = trainer, course, plan
        self.coming: list[Mapping[str, Any]] = []

    def change(self, wanted: Mapping[str, Any]) -> Iterator[Event]:
        """Makes changes (path -> value); one that cannot be made is told, and nothing is changed. Another length is a phase anew."""
        before = self.course.plan.total_steps
        try:
            config, made = changed(self.trainer.config, wanted)
            self._follow(config)
        except TrainerError as error:
            yield Warned(with_remedy(error), error.problems[0].path)
            return
        for one in made:
            self.course.changes.append({**one, "step": self.course.step})
            yield Changed(one["path"], one["old"], one["new"], self.course.step)
        if self.course.plan.total_steps != before:
            yield Phase("training", self.course.plan.total_steps)

    def replay(self) -> Iterator[Event]:
        """Changes that belong to this step."""
        while self.coming and self.coming[0]["step"] <= self.course.step:
            one = self.coming.pop(0)
            yield from self.change({one["path"]: one["new"]})

    def restore(self, changes: Sequence[Mapping[str, Any]]) -> None:
        """Makes again what had been changed by the time that a state was kept."""
        config = self.trainer.config
        for one in changes:
            config, _ = changed(config, {one["path"]: one["new"]})
        self._follow(config)
        self.course.changes = [dict(one) for one in changes]

    def _follow(self, config: Any) -> None:
        """Everything that was made of the config before, made anew. Raises TrainerError before anything is changed."""
        trainer, plan = self.trainer, self.plan(config)
        groups = setup.group_plans(config, trainer.adapter)
        trainer.config, self.course.plan = config, plan
        trainer.optimizer.set_rates({group.name: group.rate for group in groups})
