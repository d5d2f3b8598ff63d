"""What a rule of the wizard looks at: settings as advised so far, machine, pictures and model (no torch)."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import say
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.wizard import repeats, vram
from lora_trainer.wizard.facts import DatasetFacts, Group, MachineFacts
from lora_trainer.wizard.subjects import Subject

INSTEAD = {
    "optimizer.unet_lr": "optimizer.learning_rate",
    "optimizer.text_encoder_lr": "optimizer.learning_rate",
    "steps.max_train_epochs": "steps.max_train_steps",
}
"""A change of the first takes the second's effect away: it is the user's too where the second is."""


@attrs.frozen(eq=False)
class RuleContext:
    """What a rule sees. `groups` are the pictures by bucket, once size and validation stand."""

    config: TrainConfig
    machine: MachineFacts
    pictures: DatasetFacts
    model: ModelFacts | None
    subject: Subject
    typed: Collection[str]
    clip_skip: int | None
    groups: tuple[Group, ...] = ()

    @property
    def family(self) -> str:
        """Of the model; Stable Diffusion 1 where none is known."""
        return self.model.family if self.model else "sd1"

    @property
    def course(self) -> repeats.SampleCount:
        """Pictures and pictures a step, for counting steps."""
        most = repeats.MOST_STEPS_SDXL if self.family == "sdxl" else repeats.MOST_STEPS
        return repeats.SampleCount(self.groups, self.config.data.batch_size, self.config.steps.gradient_accumulation_steps, most)

    @property
    def limits(self) -> vram.Limits:
        """What the memory allows at the training size."""
        width, height = effective.resolution(self.config)
        return vram.limits(self.machine, width * height, self.family)

    @property
    def steps_per_epoch(self) -> int:
        """Of the config as it stands."""
        return self.course.steps(None if self.pictures.folder_repeats else self.config.data.num_repeats, 1)

    @property
    def total_steps(self) -> int:
        """Of the config as it stands."""
        return effective.train_length(self.config, self.steps_per_epoch)[1]

    def needed_mb(self, checkpointing: bool, batch: int | None = None) -> float:
        """The plan's estimate with this way of training, the text encoder trained where the memory allows it."""
        changes = [Change("memory.gradient_checkpointing", checkpointing, say(""))]
        if effective.trains_unet(self.config):
            changes.append(Change("optimizer.text_encoder_lr", 1e-5 if self.limits.text_encoder else 0.0, say("")))
        if batch:
            changes.append(Change("data.batch_size", batch, say("")))
        if self.family == "sdxl" and not self.machine.on_cpu:
            changes.append(Change("data.cache_text_encoder_outputs", True, say("")))
        return vram.needed_mb(apply_changes(self.config, changes), self.model, self.machine)

    def is_typed(self, path: str) -> bool:
        """Whether the user wrote this value, or the one that stands in its place."""
        other = INSTEAD.get(path, "")
        return path in self.typed or (other in self.typed and bool(value_at(self.config, other)) and not value_at(self.config, path))
