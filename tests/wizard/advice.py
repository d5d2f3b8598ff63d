"""The changes that the wizard's rules suggest for facts that a test makes up, without pictures, model or plan."""

from __future__ import annotations

from collections.abc import Collection

from lora_trainer.config.changes import Change
from lora_trainer.config.schema import TrainConfig
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.wizard.advise import suggest_changes
from lora_trainer.wizard.facts import DatasetFacts, MachineFacts
from lora_trainer.wizard.rule_context import RuleContext
from lora_trainer.wizard.subjects import find_subject


def advise(
    config: TrainConfig,
    machine: MachineFacts,
    dataset: DatasetFacts,
    model: ModelFacts | None,
    subject: str,
    typed: Collection[str] = (),
) -> list[Change]:
    """All changes; those to options that the user typed come last."""
    kind = find_subject(subject)
    context = RuleContext(config, machine, dataset, model, kind if model is None else kind.for_family(model.family), typed, None)
    changes, typed_changes = suggest_changes(context)
    return changes + typed_changes
