"""Reports on a dataset before training: the doctor's findings, and the first batches as they will be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config import effective
from lora_trainer.config.schema import TrainConfig

if TYPE_CHECKING:
    from lora_trainer.prep.doctor import Diagnosis
    from lora_trainer.prep.suggestion import Suggestion
    from lora_trainer.train.inputs.dataset import TrainingDataset


def examine_dataset(
    config: TrainConfig, on_progress: Callable[[int, int], object] = lambda done, total: None
) -> tuple[Diagnosis, tuple[Suggestion, ...]]:
    """The doctor's findings for a config's dataset, and its suggestions. Raises DatasetError when no folder can be read."""
    from lora_trainer.prep.advice import suggestions
    from lora_trainer.prep.doctor import diagnose

    diagnosis = diagnose(config.data, config.model.max_token_length, on_progress)
    return diagnosis, suggestions(diagnosis, config.data)


def write_first_batches(config: TrainConfig, dataset: TrainingDataset, folder: Path, language: str = "en") -> dict[str, Any]:
    """Writes batches.png and batches.json to `folder` and returns the JSON's content. Raises DatasetError."""
    from lora_trainer.prep.batch_preview import write_batches

    return write_batches(folder, *draw_first_batches(config, dataset, language))


def draw_first_batches(config: TrainConfig, dataset: TrainingDataset, language: str = "en") -> tuple[bytes, dict[str, Any]]:
    """The first batches as they will be trained: a contact sheet (PNG bytes) and its description. Raises DatasetError."""
    from lora_trainer.data import batch_sampler
    from lora_trainer.prep.batch_preview import draw_batches

    accumulation = config.steps.gradient_accumulation_steps
    _, total = effective.train_length(config, batch_sampler.steps_per_epoch(dataset.train_records, dataset.batch_sizes, accumulation))
    return draw_batches(dataset, seed=config.seed, accumulation=accumulation, total_steps=total, language=language)
