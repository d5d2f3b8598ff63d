"""The measured time of a run on this machine, from earlier runs that did the same work."""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs

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
    return _hash([*values, *parts])


def extras_key(config: TrainConfig) -> str:
    """A key that is equal for configs that do the same besides their steps: previews, validation, files, states."""
    parts = [config.sample, config.validate, attrs.evolve(config.save, output_name="", runs_dir="", output_dir="", overwrite=False)]
    return _hash([*parts, config.data.cache_latents, config.data.cache_latents_to_disk])


def measured_seconds(config: TrainConfig, runs_dir: Path, total_steps: int) -> float | None:
    """The time of a run of `total_steps`, by the newest run whose steps did the same work; None when there is none.

    What came besides the steps counts as it did then, by the step, if that run did the same besides them.
    """
    key, extras = work_key(config), extras_key(config)
    for folder in list_runs(runs_dir)[:MAX_RUNS]:
        info = folder.info()
        if info.get("work") != key:
            continue
        manifest = folder.manifest()
        step, active, steps = (manifest.get(name) for name in ("step_seconds", "active_seconds", "step"))
        if step and active and steps and info.get("extras") == extras:
            return max(float(step), float(active) / steps) * total_steps
        if step:
            return float(step) * total_steps
    return None


def _hash(values: list[object]) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()[:16]
