"""Pictures looked at before training: the doctor's findings, and the first batches as they will be trained."""

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


def examined(
    config: TrainConfig, tell: Callable[[int, int], object] = lambda done, total: None
) -> tuple[Diagnosis, tuple[Suggestion, ...]]:
    """What the doctor says of a config's pictures. Raises DatasetError where no folder can be read."""
    from lora_trainer.prep.advice import suggestions
    from lora_trainer.prep.doctor import examine

    seen = examine(config.data, config.model.max_token_length, tell)
    return seen, suggestions(seen, config.data)


def shown(config: TrainConfig, pictures: TrainingDataset, folder: Path, language: str = "en") -> dict[str, Any]:
    """batches.png and batches.json in `folder`, and their content. Raises DatasetError."""
    from lora_trainer.prep.batch_preview import write_batches

    return write_batches(folder, *drawn(config, pictures, language))


def drawn(config: TrainConfig, pictures: TrainingDataset, language: str = "en") -> tuple[bytes, dict[str, Any]]:
    """The first batches as they will be trained: a sheet as PNG, and what it shows. Raises DatasetError."""
    from lora_trainer.data import batch_sampler
    from lora_trainer.prep.batch_preview import draw_batches

    accumulation = config.steps.gradient_accumulation_steps
    _, total = effective.train_length(config, batch_sampler.steps_per_epoch(pictures.trained, pictures.batch_sizes, accumulation))
    return draw_batches(pictures, seed=config.seed, accumulation=accumulation, total_steps=total, language=language)
