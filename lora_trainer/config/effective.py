"""Effective values of a config: what applies where an option was left empty. One place, so that all callers agree."""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath
from typing import Any

from lora_trainer.config import arguments
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES
from lora_trainer.config.file_names import slug
from lora_trainer.config.schema import SampleConfig, SaveConfig, Steps, TrainConfig, ValidateConfig

DEFAULT_EPOCHS = 10
Interval = SampleConfig | ValidateConfig | SaveConfig


def unet_lr(config: TrainConfig) -> float:
    """Learning rate of the U-Net."""
    return config.optimizer.learning_rate if config.optimizer.unet_lr is None else config.optimizer.unet_lr


def text_encoder_lr(config: TrainConfig, encoder: int = 0) -> float:
    """Learning rate of a text encoder (0 is the first); the last rate of a list also applies to the encoders after it."""
    lr = config.optimizer.text_encoder_lr
    if isinstance(lr, tuple):
        lr = lr[min(encoder, len(lr) - 1)] if lr else None
    return config.optimizer.learning_rate if lr is None else lr


def lr_batch_scale(config: TrainConfig, batch_size: int) -> float:
    """Factor on the learning rates for `batch_size` pictures per step: 1, its square root, or itself, by `optimizer.scale_lr`."""
    return {"none": 1.0, "sqrt": math.sqrt(batch_size), "linear": float(batch_size)}[config.optimizer.scale_lr]


def loraplus_lr_ratio(config: TrainConfig, part: str) -> float:
    """LoRA+ (Hayou et al. 2024): the upper matrices' rate over the lower ones'; 1 without LoRA+."""
    optimizer = config.optimizer
    part_ratio = optimizer.loraplus_unet_lr_ratio if part == "unet" else optimizer.loraplus_text_encoder_lr_ratio
    return (optimizer.loraplus_lr_ratio if part_ratio is None else part_ratio) or 1.0


def trains_unet(config: TrainConfig) -> bool:
    """False only if `unet_lr` itself is 0; with `learning_rate` 0 it still trains, at rate 0."""
    return config.optimizer.unet_lr != 0


def trains_text_encoder(config: TrainConfig) -> bool:
    """False only if `text_encoder_lr` itself is 0, or is a list of zeros."""
    lr = config.optimizer.text_encoder_lr
    return any(lr) if isinstance(lr, tuple) and lr else lr != 0


def uses_of_unet_weights(config: TrainConfig) -> tuple[str, ...]:
    """Paths of the options that calculate with the U-Net's own weights, and so need them in full precision."""
    network, row = config.network, NETWORK_TYPES[config.network.type]
    if not trains_unet(config):
        return ("network.base_weights",) if network.base_weights else ()
    uses = {
        "network.type": row.kind == "full" or bool(row.fixed.get("dora")),
        "network.dora_wd": network.dora_wd and not row.fixed.get("dora"),
        "network.base_weights": bool(network.base_weights),
    }
    return tuple(path for path, needs_weights in uses.items() if needs_weights)


def uses_own_process(config: TrainConfig) -> bool:
    """Whether the run is a process of its own, beside a WebUI that keeps its model; naming a device means that too."""
    return config.memory.own_process or bool(config.memory.device)


def caches_captions(config: TrainConfig) -> bool:
    """Whether captions are encoded before the steps and the text encoders leave the GPU; caching to disk implies it, as in sd-scripts."""
    is_cached = config.data.cache_text_encoder_outputs or config.data.cache_text_encoder_outputs_to_disk
    return is_cached and not trains_text_encoder(config)


def trained_parts(config: TrainConfig) -> tuple[str, ...]:
    """The trained parts: "unet", "text_encoder" or both."""
    parts = (("unet", trains_unet(config)), ("text_encoder", trains_text_encoder(config)))
    return tuple(part for part, is_trained in parts if is_trained)


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rate of each parameter group: the trained parts, and "unet plus" etc. for the upper matrices with LoRA+."""
    base_rates = {"unet": unet_lr(config)} if trains_unet(config) else {}
    if trains_text_encoder(config):
        base_rates["text_encoder"] = text_encoder_lr(config)
    rates: dict[str, float] = {}
    for part, base in base_rates.items():
        rates[part] = base
        if (ratio := loraplus_lr_ratio(config, part)) != 1.0:
            rates[f"{part} plus"] = base * ratio
    return rates


def group_name(name: str, lr_scale: float) -> str:
    """The name of a parameter group of blocks that learn at `lr_scale` times the group's rate."""
    return name if lr_scale == 1.0 else f"{name} x{lr_scale:g}"


def decay_steps(config: TrainConfig, total: int) -> int:
    """Decay steps of the schedule in a run of `total` steps."""
    return _resolve_steps(config.schedule.decay_steps, total)


def interval_epochs(section: Interval) -> int:
    """Interval in epochs; 0: not by epochs. Left empty: every epoch, unless steps are given."""
    if section.every_n_epochs is None:
        return 0 if section.every_n_steps else 1
    return section.every_n_epochs


def interval_steps(section: Interval) -> int:
    """Interval in steps; 0: not by steps. For previews epochs win if both are given."""
    if isinstance(section, SampleConfig) and section.every_n_epochs:
        return 0
    return section.every_n_steps


def resolution(config: TrainConfig) -> tuple[int, int]:
    """(width, height) of the training size in pixels."""
    size = config.data.resolution
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Warm-up steps in a run of `total` steps; a share such as "5%" is rounded to the nearest step."""
    return _resolve_steps(config.schedule.warmup_steps, total)


def _resolve_steps(steps: Steps, total: int) -> int:
    if isinstance(steps, int):
        return min(steps, total)
    return min(int(float(steps.rstrip("% ")) / 100 * total + 0.5), total)


def train_length(config: TrainConfig, steps_per_epoch: int) -> tuple[int, int]:
    """(epochs, total steps): epochs win over steps; with neither, 10 epochs. Steps may end in the middle of the last epoch."""
    if config.steps.max_train_steps and not config.steps.max_train_epochs:
        total = config.steps.max_train_steps
        return math.ceil(total / max(1, steps_per_epoch)), total
    epochs = config.steps.max_train_epochs or DEFAULT_EPOCHS
    return epochs, epochs * steps_per_epoch


def network_scale(config: TrainConfig) -> float:
    """Scale of the network: alpha / rank, alpha / sqrt(rank) for rsLoRA, 1 for a kind without rank."""
    network, network_type = config.network, NETWORK_TYPES[config.network.type]
    if not NETWORK_KINDS[network_type.kind].has_rank:
        return 1.0
    return network.alpha / (math.sqrt(network.dim) if network.rs_lora or network_type.fixed.get("rs_lora") else network.dim)


def output_name(config: TrainConfig) -> str:
    """The result's name: the option, else made from the trigger word, else from the folder's name (without its `N_`)."""
    if config.save.output_name:
        return config.save.output_name
    if config.data.trigger_word.strip():
        return slug(config.data.trigger_word)
    data = config.data
    folders = [data.train_data_dir, *(table.get("image_dir", "") for table in data.subsets)]
    text = next((text for text in folders if text.strip()), "") or _without_suffix(data.dataset_config or data.in_json)
    folder = PureWindowsPath(text).name or Path(text).name
    number, underscore, rest = folder.partition("_")
    return slug(rest if underscore and number.isdecimal() and rest else folder)


def _without_suffix(file: str) -> str:
    return file.rpartition(".")[0] or file


def validation_seed(config: TrainConfig) -> int:
    """Seed of the validation split: its own, else the run's."""
    return config.seed if config.validate.seed is None else config.validate.seed


def prompt_lines(config: TrainConfig) -> list[str]:
    """The preview prompts, one per line; empty lines and lines that begin with # are skipped, as in sd-scripts' prompt files."""
    lines = [line.strip() for text in config.sample.prompts for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def optimizer_args(config: TrainConfig) -> dict[str, Any]:
    """`weight_decay=0.01 betas=.9,.999` as {"weight_decay": 0.01, "betas": (0.9, 0.999)}."""
    return arguments.parse_args(config.optimizer.args)
