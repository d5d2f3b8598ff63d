"""What follows from a config: the values that hold where an option was left empty. One place, so that all agree."""

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
    """Learning rate of a text encoder (0 is the first); the last of a list holds for those that come after it."""
    given = config.optimizer.text_encoder_lr
    if isinstance(given, tuple):
        given = given[min(encoder, len(given) - 1)] if given else None
    return config.optimizer.learning_rate if given is None else given


def batch_factor(config: TrainConfig, pictures: int) -> float:
    """What rates are multiplied by where a step has so many pictures, by `optimizer.scale_lr`."""
    return {"none": 1.0, "sqrt": math.sqrt(pictures), "linear": float(pictures)}[config.optimizer.scale_lr]


def loraplus_ratio(config: TrainConfig, part: str) -> float:
    """How much faster the upper matrices of a part learn; 1 is alike."""
    section = config.optimizer
    own = section.loraplus_unet_lr_ratio if part == "unet" else section.loraplus_text_encoder_lr_ratio
    return (section.loraplus_lr_ratio if own is None else own) or 1.0


def trains_unet(config: TrainConfig) -> bool:
    """False only where `unet_lr` itself says 0; a learning rate of 0 for all still trains, at rate 0."""
    return config.optimizer.unet_lr != 0


def trains_text_encoder(config: TrainConfig) -> bool:
    """False only where `text_encoder_lr` itself says 0, for all encoders where it is a list."""
    given = config.optimizer.text_encoder_lr
    return any(given) if isinstance(given, tuple) and given else given != 0


def keeps_captions(config: TrainConfig) -> bool:
    """Whether text encoders are not needed while steps are calculated; kept on disk means so too, as in sd-scripts."""
    asked = config.data.cache_text_encoder_outputs or config.data.cache_text_encoder_outputs_to_disk
    return asked and not trains_text_encoder(config)


def parts(config: TrainConfig) -> tuple[str, ...]:
    """What is trained: "unet", "text_encoder" or both."""
    trained = (("unet", trains_unet(config)), ("text_encoder", trains_text_encoder(config)))
    return tuple(part for part, wanted in trained if wanted)


def rates(config: TrainConfig) -> dict[str, float]:
    """Each group's learning rate: of the parts that are trained, "unet plus" for the upper matrices where LoRA+ makes them faster."""
    bases = {"unet": unet_lr(config)} if trains_unet(config) else {}
    if trains_text_encoder(config):
        bases["text_encoder"] = text_encoder_lr(config)
    found: dict[str, float] = {}
    for part, base in bases.items():
        found[part] = base
        if (ratio := loraplus_ratio(config, part)) != 1.0:
            found[f"{part} plus"] = base * ratio
    return found


def group_name(name: str, share: float) -> str:
    """The name of a group of blocks that learn at a share of a group's rate."""
    return name if share == 1.0 else f"{name} x{share:g}"


def decay_steps(config: TrainConfig, total: int) -> int:
    """Steps of a schedule's decay in a run of `total` steps."""
    return _of_all(config.schedule.decay_steps, total)


def interval_epochs(section: Interval) -> int:
    """After how many epochs something happens; 0: not by epochs. Left empty: each epoch, unless steps are given."""
    if section.every_n_epochs is None:
        return 0 if section.every_n_steps else 1
    return section.every_n_epochs


def interval_steps(section: Interval) -> int:
    """After how many steps something happens; 0: not by steps. For previews epochs win where both are given."""
    if isinstance(section, SampleConfig) and section.every_n_epochs:
        return 0
    return section.every_n_steps


def resolution(config: TrainConfig) -> tuple[int, int]:
    """Width and height of the training size."""
    size = config.data.resolution
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Steps of warm-up in a run of `total` steps; a share such as "5%" is rounded to the nearest step."""
    return _of_all(config.schedule.warmup_steps, total)


def _of_all(given: Steps, total: int) -> int:
    if isinstance(given, int):
        return min(given, total)
    return min(int(float(given.rstrip("% ")) / 100 * total + 0.5), total)


def train_length(config: TrainConfig, steps_per_epoch: int) -> tuple[int, int]:
    """(epochs, total steps): epochs win over steps; with neither, 10 epochs. The last epoch may be cut short by steps."""
    if config.steps.max_train_steps and not config.steps.max_train_epochs:
        total = config.steps.max_train_steps
        return math.ceil(total / max(1, steps_per_epoch)), total
    epochs = config.steps.max_train_epochs or DEFAULT_EPOCHS
    return epochs, epochs * steps_per_epoch


def network_scale(config: TrainConfig) -> float:
    """Strength of the network: alpha / rank, alpha / root of the rank where it says so, 1 of a kind without rank."""
    network, row = config.network, NETWORK_TYPES[config.network.type]
    if not NETWORK_KINDS[row.kind].ranked:
        return 1.0
    return network.alpha / (math.sqrt(network.dim) if network.rs_lora or row.fixed.get("rs_lora") else network.dim)


def output_name(config: TrainConfig) -> str:
    """The result's name: as given, else made from the trigger word, else from the folder's name (without its `N_`)."""
    if config.save.output_name:
        return config.save.output_name
    if config.data.trigger_word.strip():
        return slug(config.data.trigger_word)
    data = config.data
    named = [data.train_data_dir, *(table.get("image_dir", "") for table in data.subsets)]
    text = next((text for text in named if text.strip()), "") or _without_ending(data.dataset_config or data.in_json)
    folder = PureWindowsPath(text).name or Path(text).name
    number, underscore, rest = folder.partition("_")
    return slug(rest if underscore and number.isdecimal() and rest else folder)


def _without_ending(file: str) -> str:
    return file.rpartition(".")[0] or file


def validation_seed(config: TrainConfig) -> int:
    """Seed of which pictures are held back: the run's where it has none of its own."""
    return config.seed if config.validate.seed is None else config.validate.seed


def prompts(config: TrainConfig) -> list[str]:
    """The preview prompts, a line each; empty lines and lines that begin with # are left out, as in sd-scripts' prompt files."""
    lines = [line.strip() for text in config.sample.prompts for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def optimizer_args(config: TrainConfig) -> dict[str, Any]:
    """`weight_decay=0.01 betas=.9,.999` as {"weight_decay": 0.01, "betas": (0.9, 0.999)}."""
    return arguments.values(config.optimizer.args)


def schedule_args(config: TrainConfig) -> dict[str, Any]:
    """The arguments of a schedule that is a class of some package."""
    return arguments.values(config.schedule.args)
