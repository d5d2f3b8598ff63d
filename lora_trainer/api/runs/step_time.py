"""How long a step takes here, from runs that did the same work."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lora_trainer.config import effective
from lora_trainer.config.changes import value_at
from lora_trainer.config.schema import TrainConfig
from lora_trainer.jobs.folder import runs_in

DECIDING = (
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
"""What the time of a step depends on, on one machine."""
LOOKED_AT = 20


def work_key(config: TrainConfig) -> str:
    """The same for configs whose steps do the same work."""
    values = [value_at(config, path) for path in DECIDING]
    parts = [effective.trains_unet(config), effective.trains_text_encoder(config)]
    if config.data.subsets or config.data.dataset_config:  # sizes of their own
        values += [config.data.subsets, config.data.dataset_config]
    return hashlib.sha256(repr([*values, *parts]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def measured_step(config: TrainConfig, runs_dir: Path) -> float | None:
    """Seconds that a step of the newest such run took on average; None where there was none."""
    key = work_key(config)
    for folder in runs_in(runs_dir)[:LOOKED_AT]:
        if folder.about().get("work") == key and (seconds := folder.manifest().get("step_seconds")):
            return float(seconds)
    return None
