"""Short real runs on the small model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lora_trainer import assets
from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.events import Event
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train.loop import run


def small_config(out: Path, **changes: Any) -> TrainConfig:
    """A 12-step run on the crescent; `changes` as section__name=value."""
    pictures = assets.toy_pictures() / "crescent"
    mapping: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(assets.toy_checkpoint())},
        "data": {"train_data_dir": str(pictures / "train"), "resolution": 64, "batch_size": 2, "trigger_word": "sks"},
        "network": {"dim": 4, "alpha": 4},
        "optimizer": {"learning_rate": 2e-3},
        "steps": {"max_train_steps": 12},
        "save": {"output_dir": str(out / "loras"), "output_name": "small", "precision": "float"},
    }
    for name, value in changes.items():
        section, _, option = name.partition("__")
        if option:
            mapping.setdefault(section, {})[option] = value
        else:
            mapping[section] = value
    return build(mapping)


def events_of(config: TrainConfig, folder: Path, control: Control | None = None) -> list[Event]:
    """All events of the run."""
    with contextlib.closing(run(config, StandaloneHost(folder), control or Control(), folder / "run")) as work:
        return list(work)


def tensors_of(path: Path) -> dict[str, Any]:
    """Tensors of a written file."""
    from safetensors.torch import load_file

    return load_file(path)
