"""The Performance Wizard: offers changes with reasons and makes none (no torch)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import attrs

from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.config.schema import TrainConfig
from lora_trainer.host.base import Host
from lora_trainer.messages import Message, say
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.train.planning.plan import TrainingPlan, make_plan
from lora_trainer.wizard import probe
from lora_trainer.wizard.facts import GB, DatasetFacts, MachineFacts, whole
from lora_trainer.wizard.rule_context import RuleContext
from lora_trainer.wizard.rules import PICTURE_RULES, TRAINING_RULES
from lora_trainer.wizard.subjects import Subject, subject_called


@attrs.frozen
class Suggestion:
    """Changes (those in `typed` last), the config with the others made, the plan of that, and what no setting cures."""

    changes: tuple[Change, ...]
    typed: frozenset[str]
    config_after: TrainConfig
    plan: TrainingPlan
    notes: tuple[Message, ...]


def suggest(
    config: TrainConfig,
    *,
    subject: str,
    vram_gb: float | None = None,
    model_path: Path | None = None,
    host: Host | None = None,
    typed: Collection[str] = (),
) -> Suggestion:
    """Looks at pictures, model and machine, and advises. Raises ConfigError (subject), DatasetError, ModelError.

    `vram_gb` is a card's size and wins over the machine's own; `typed` are the paths of options that the user wrote.
    """
    kind = subject_called(subject)
    machine, model = probe.machine(host, vram_gb), probe.model(config.model, model_path, host)
    pictures = DatasetFacts.read(config)
    now = RuleContext(config, machine, pictures, model, _on(kind, model), typed, probe.clip_skip(config.model, host))
    offered, asked = _advise(now)
    after = apply_changes(config, offered)
    plan = make_plan(after, pictures.placed(after), model, machine.for_plan(), pictures.datasets(after))
    notes = _remarks(machine, pictures, kind, plan.needed_mb, plan.seconds)
    return Suggestion((*offered, *asked), frozenset(change.path for change in asked), after, plan, tuple(notes))


def advise(
    config: TrainConfig,
    machine: MachineFacts,
    pictures: DatasetFacts,
    model: ModelFacts | None,
    subject: str,
    typed: Collection[str] = (),
) -> list[Change]:
    """What should be changed and why; what the user typed comes last, and the other advice counts on it staying.

    The config with these changes made gets no further advice. Raises ConfigError for an unknown subject.
    """
    offered, asked = _advise(RuleContext(config, machine, pictures, model, _on(subject_called(subject), model), typed, None))
    return offered + asked


def _on(subject: Subject, model: ModelFacts | None) -> Subject:
    return subject if model is None else subject.on(model.family)


def _advise(start: RuleContext) -> tuple[list[Change], list[Change]]:
    """(changes that are counted on, changes of what the user typed)."""
    fixed = start.pictures.fixed(start.config)
    start = attrs.evolve(start, config=start.pictures.as_trained(start.config))
    offered: list[Change] = []
    asked: list[Change] = []
    now = start
    for rules in (PICTURE_RULES, TRAINING_RULES):
        for rule in rules:
            for change in rule(now):
                if change.path not in fixed and value_at(start.config, change.path) != change.value:
                    (asked if start.is_typed(change.path) else offered).append(change)
            now = attrs.evolve(now, config=apply_changes(start.config, offered))
        if not now.groups:
            now = attrs.evolve(now, groups=start.pictures.groups(now.config))
    return offered, asked


def _remarks(machine: MachineFacts, pictures: DatasetFacts, subject: Subject, needed_mb: float, seconds: float) -> Iterator[Message]:
    """What no setting cures. `needed_mb` and `seconds` are the plan's estimates."""
    if machine.on_cpu and seconds < 7200:
        yield say("There is no GPU: training is slow, about {minutes} min (estimate).", minutes=max(1, round(seconds / 60)))
    elif machine.on_cpu:
        yield say("There is no GPU: training is slow, about {hours} hours (estimate).", hours=round(seconds / 3600))
    if machine.free_mb and needed_mb > machine.free_mb:
        room = {"needed": whole(needed_mb / GB), "free": whole(machine.free_mb / GB)}
        yield say("About {needed} GB are needed and {free} GB are free (estimate): it may not fit.", **room)
    if pictures.images < subject.wanted:
        values = {"subject": subject.label, "wanted": subject.wanted, "count": pictures.images}
        yield say("For {subject}, {wanted} pictures or more are better; there are {count}.", **values)
