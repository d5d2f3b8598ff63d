"""The Performance Wizard: suggests changes with reasons and applies none (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.config.schema import TrainConfig
from lora_trainer.host.base import Host
from lora_trainer.messages import Message, duration, say
from lora_trainer.train.planning.plan import TrainingPlan, make_plan
from lora_trainer.wizard import probe
from lora_trainer.wizard.facts import GB, DatasetFacts, MachineFacts, rounded
from lora_trainer.wizard.rule_context import RuleContext
from lora_trainer.wizard.rules import PICTURE_RULES, TRAINING_RULES
from lora_trainer.wizard.subjects import Subject, find_subject

MAX_PASSES = 4


@attrs.frozen
class Suggestion:
    """Changes (those to options that the user typed come last, `typed` names them), the config and plan with the others applied, and
    notes on what no setting can fix."""

    changes: tuple[Change, ...]
    typed: frozenset[str]
    config_after: TrainConfig
    plan: TrainingPlan
    notes: tuple[Message, ...]
    measured_seconds: float | None = None
    """The run's time as an earlier run on this machine measured it."""

    def plan_json(self) -> dict[str, Any]:
        """The plan as `check` tells it: with the measured time where there is one."""
        plan = self.plan.to_json()
        return plan if self.measured_seconds is None else plan | {"seconds": round(self.measured_seconds, 1), "seconds_measured": True}


def suggest(
    config: TrainConfig,
    *,
    subject: str,
    vram_gb: float | None = None,
    model_path: Path | None = None,
    host: Host | None = None,
    typed: Collection[str] = (),
    measured: Callable[[TrainConfig, int], float | None] | None = None,
) -> Suggestion:
    """Inspects pictures, model and machine and suggests changes. Raises ConfigError (subject), DatasetError, ModelError.

    `vram_gb` is a card's size and takes precedence over this machine's; `typed` are the paths of options that the user set; `measured`
    gives the seconds that a run of so many steps took on this machine, None where none did the same work.
    """
    kind = find_subject(subject)
    machine, model = probe.machine(host, vram_gb), probe.model(config.model, model_path, host)
    dataset = DatasetFacts.read(config)
    context = RuleContext(
        config,
        machine,
        dataset,
        model,
        kind if model is None else kind.for_family(model.family),
        typed,
        probe.clip_skip(config.model, host),
    )
    changes, typed_changes = suggest_changes(context)
    after = apply_changes(config, changes)
    plan = make_plan(after, dataset.bucketed(after), model, machine.to_machine(), dataset.datasets(after))
    seconds = measured(after, plan.total_steps) if measured is not None and not vram_gb else None
    notes = [
        *_about_time(machine, seconds, plan.seconds),
        *_remarks(machine, dataset, kind, plan.needed_mb),
        *_about_validation(dataset, after),
    ]
    typed_paths = frozenset(change.path for change in typed_changes)
    return Suggestion((*changes, *typed_changes), typed_paths, after, plan, tuple(notes), seconds)


def suggest_changes(start: RuleContext) -> tuple[list[Change], list[Change]]:
    """(changes that later rules build on, changes to options that the user typed), each with its reason.

    The config with all of them applied gets no further changes: what a rule answers may depend on a later rule's change, so the rules
    are asked again until none of them has anything to add.
    """
    rule_changes, typed_changes = _one_pass(start)
    changes = {change.path: change for change in rule_changes}
    for _ in range(MAX_PASSES - 1):
        config = apply_changes(start.config, list(changes.values()))
        rule_changes, typed_changes = _one_pass(attrs.evolve(start, config=config))
        if not rule_changes:
            break
        changes |= {change.path: change for change in rule_changes}
    return [change for change in changes.values() if value_at(start.config, change.path) != change.value], typed_changes


def _one_pass(start: RuleContext) -> tuple[list[Change], list[Change]]:
    """As `suggest_changes`, each rule asked once."""
    fixed = start.dataset.fixed_options(start.config)
    config = start.dataset.with_dataset_options(start.config)
    start = attrs.evolve(start, config=config, machine=start.machine.for_run(config))
    changes: list[Change] = []
    typed_changes: list[Change] = []
    context = start
    for rules in (PICTURE_RULES, TRAINING_RULES):
        for rule in rules:
            for change in rule(context):
                if change.path not in fixed and value_at(start.config, change.path) != change.value:
                    (typed_changes if start.is_typed(change.path) else changes).append(change)
            context = attrs.evolve(context, config=apply_changes(start.config, changes))
        if not context.bucket_counts:
            context = attrs.evolve(context, bucket_counts=start.dataset.bucket_counts(context.config))
    return changes, typed_changes


def _about_time(machine: MachineFacts, measured: float | None, estimate: float) -> Iterator[Message]:
    """That a run is slow without a GPU."""
    if not machine.on_cpu:
        return
    if measured is None:
        yield say("There is no GPU: training is slow, about {time} (estimate).", time=duration(estimate))
    else:
        yield say("There is no GPU: training is slow, about {time} (measured here).", time=duration(measured))


def _remarks(machine: MachineFacts, dataset: DatasetFacts, subject: Subject, needed_mb: float) -> Iterator[Message]:
    """Notes on what no setting can fix. `needed_mb` is the plan's estimate."""
    if machine.free_mb and needed_mb > machine.free_mb:
        sizes = {"needed": rounded(needed_mb / GB), "free": rounded(machine.free_mb / GB)}
        yield say("About {needed} GB are needed and {free} GB are free (estimate): it may not fit.", **sizes)
    if dataset.images < subject.min_pictures:
        values = {"subject": subject.label, "wanted": subject.min_pictures, "count": dataset.images}
        yield say("For {subject}, {wanted} pictures or more are better; there are {count}.", **values)


def _about_validation(dataset: DatasetFacts, config: TrainConfig) -> Iterator[Message]:
    """What the loss cannot tell where no picture is held back."""
    if not dataset.has_validation(config):
        template = (
            "No picture of {count} is held back: the loss then tells neither which epoch is best nor when it overfits. "
            "Compare the previews, and the files in step 5."
        )
        yield say(template, count=dataset.images)
