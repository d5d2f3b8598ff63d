"""What a wizard rule reads: the config with all changes so far, machine, data set and model (no torch)."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import say
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.wizard import repeats, vram
from lora_trainer.wizard.facts import BucketCounts, DatasetFacts, MachineFacts
from lora_trainer.wizard.subjects import Subject

OVERRIDES = {
    "optimizer.unet_lr": "optimizer.learning_rate",
    "optimizer.text_encoder_lr": "optimizer.learning_rate",
    "steps.max_train_epochs": "steps.max_train_steps",
}
"""Setting the first option overrides the second: where the user typed the second, the first counts as typed too."""


@attrs.frozen(eq=False)
class RuleContext:
    """What a rule reads. `bucket_counts` are empty until resolution and validation split are decided."""

    config: TrainConfig
    machine: MachineFacts
    dataset: DatasetFacts
    model: ModelFacts | None
    subject: Subject
    typed: Collection[str]
    clip_skip: int | None
    bucket_counts: tuple[BucketCounts, ...] = ()

    @property
    def family(self) -> str:
        """The model's family; "sd1" where no model is known."""
        return self.model.family if self.model else "sd1"

    @property
    def sample_count(self) -> repeats.SampleCount:
        """Pictures per bucket and batch size, for counting steps."""
        max_steps = repeats.MAX_STEPS_SDXL if self.family == "sdxl" else repeats.MAX_STEPS
        return repeats.SampleCount(
            self.bucket_counts, self.config.data.batch_size, self.config.steps.gradient_accumulation_steps, max_steps
        )

    @property
    def limits(self) -> vram.Limits:
        """What fits in memory at the training size."""
        width, height = effective.resolution(self.config)
        return vram.limits(self.machine, width * height, self.family)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch of the current config."""
        return self.sample_count.steps(None if self.dataset.folder_repeats else self.config.data.num_repeats, 1)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run with the current config."""
        return effective.train_length(self.config, self.steps_per_epoch)[1]

    def needed_mb(self, checkpointing: bool, batch: int | None = None) -> float:
        """The plan's memory estimate in MB; the text encoder counts as trained where the memory tier allows it."""
        changes = [Change("memory.gradient_checkpointing", checkpointing, say(""))]
        if effective.trains_unet(self.config):
            changes.append(Change("optimizer.text_encoder_lr", 1e-5 if self.limits.text_encoder else 0.0, say("")))
        if batch:
            changes.append(Change("data.batch_size", batch, say("")))
        if self.family == "sdxl" and not self.machine.on_cpu:
            changes.append(Change("data.cache_text_encoder_outputs", True, say("")))
        return vram.needed_mb(apply_changes(self.config, changes), self.model, self.machine)

    def is_typed(self, path: str) -> bool:
        """Whether the user typed this option, or the one that it overrides."""
        overridden = OVERRIDES.get(path, "")
        return path in self.typed or (
            overridden in self.typed and bool(value_at(self.config, overridden)) and not value_at(self.config, path)
        )
