"""The measured time of a step on this machine, from earlier runs that did the same work."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lora_trainer.config import effective
from lora_trainer.config.changes import value_at
from lora_trainer.config.schema import TrainConfig
from lora_trainer.jobs.folder import list_runs

STEP_OPTIONS = (
    "model.pretrained_model_name_or_path",
    "data.resolution",
    "data.batch_size",
    "data.enable_bucket",
    "data.cache_latents",
    "network.dim",
    "steps.gradient_accumulation_steps",
    "memory.mixed_precision",
    "memory.gradient_checkpointing",
)
"""Options that the time of a step depends on, on one machine."""
MAX_RUNS = 20


def work_key(config: TrainConfig) -> str:
    """A key that is equal for configs whose steps do the same work."""
    values = [value_at(config, path) for path in STEP_OPTIONS]
    parts = [effective.trains_unet(config), effective.trains_text_encoder(config)]
    if config.data.subsets or config.data.dataset_config:  # sizes of their own
        values += [config.data.subsets, config.data.dataset_config]
    return hashlib.sha256(repr([*values, *parts]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def measured_step(config: TrainConfig, runs_dir: Path) -> float | None:
    """The average seconds per step of the newest run with the same work_key; None when there is none."""
    key = work_key(config)
    for folder in list_runs(runs_dir)[:MAX_RUNS]:
        if folder.info().get("work") == key and (seconds := folder.manifest().get("step_seconds")):
            return float(seconds)
    return None
