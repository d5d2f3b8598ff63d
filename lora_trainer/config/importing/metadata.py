"""Settings from a trained file's metadata: sd-scripts' `ss_*` keys, which this trainer writes too, and OneTrainer's (no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.importing.arguments import SPECIAL, Key, paths_by_name, translate_keys
from lora_trainer.config.importing.networks import network_defaults
from lora_trainer.config.importing.reasons import OFF, REASONS
from lora_trainer.config.importing.result import Imported
from lora_trainer.errors import ConfigError
from lora_trainer.messages import Message, say

RESULT = say("It records a result of that run; it is not a setting.")
ELSEWHERE = say("The pictures are chosen here: set the folder.")
BASE = say("Only the name of the base model is known: choose it.")
NOT_READ = say("OneTrainer's own setting, which has no counterpart here.")
ARGUMENT_NAMES = {
    "optimizer": "optimizer_type",
    "batch_size_per_device": "train_batch_size",
    "num_epochs": "max_train_epochs",
    "lr_warmup_steps": "lr_warmup_steps",
    "multires_noise_iterations": "multires_noise_iterations",
    "debiased_estimation": "debiased_estimation_loss",
}
"""sd-scripts' metadata key -> its command-line argument."""
RESULTS = frozenset(
    [
        "session_id",
        "training_started_at",
        "training_finished_at",
        "output_name",
        "num_train_images",
        "num_validation_images",
        "num_reg_images",
        "num_batches_per_epoch",
        "epoch",
        "steps",
        "sd_scripts_commit_hash",
        "sd_model_hash",
        "new_sd_model_hash",
        "vae_hash",
        "new_vae_hash",
        "tag_frequency",
        "bucket_info",
        "base_model_version",
        "total_batch_size",
        "training_comment",
        "lowram",
        "validation_every_n_epochs",
    ]
)
FOLDERS = ("dataset_dirs", "reg_dataset_dirs", "datasets")
ONE_TRAINER = {
    "learning_rate": "learning_rate",
    "epochs": "max_train_epochs",
    "batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "learning_rate_warmup_steps": "lr_warmup_steps",
    "lora_rank": "network_dim",
    "lora_alpha": "network_alpha",
    "resolution": "resolution",
    "seed": "seed",
    "clip_grad_norm": "max_grad_norm",
    "offset_noise_weight": "noise_offset",
    "unet.learning_rate": "unet_lr",
    "text_encoder.learning_rate": "text_encoder_lr",
    "optimizer.optimizer": "optimizer_type",
    "learning_rate_scheduler": "lr_scheduler",
    "train_dtype": "mixed_precision",
}
ONE_TRAINER_VALUES = {
    "ADAMW": "AdamW",
    "ADAMW_8BIT": "AdamW8bit",
    "ADAFACTOR": "AdaFactor",
    "PRODIGY": "Prodigy",
    "LION": "Lion",
    "CONSTANT": "constant_with_warmup",
    "COSINE": "cosine",
    "LINEAR": "linear",
    "COSINE_WITH_RESTARTS": "cosine_with_restarts",
    "FLOAT_16": "fp16",
    "BFLOAT_16": "bf16",
    "FLOAT_32": "no",
}


def import_metadata(metadata: Mapping[str, str]) -> Imported:
    """The settings in a trained file's metadata. Every key is taken, or listed with the reason; nothing is filled in.

    Raises ConfigError if the metadata holds no settings.
    """
    keys = list(_one_trainer(metadata)) if "ot_config" in metadata else list(_sd_scripts(metadata))
    if not any(key.why is None for key in keys):
        raise ConfigError(
            [problem("", "the file's header holds no settings.", "Choose a file of this trainer, of sd-scripts or of OneTrainer.")]
        )
    defaults = network_defaults({key.name: key.value for key in keys if key.why is None})
    translated, taken, left, _ = translate_keys(keys, lambda name: None, defaults)
    notes = [ELSEWHERE, BASE] if not translated.get("model", {}).get("pretrained_model_name_or_path") else [ELSEWHERE]
    return Imported("onetrainer" if "ot_config" in metadata else "metadata", translated, tuple(taken), tuple(left), (), tuple(notes))


def _sd_scripts(metadata: Mapping[str, str]) -> Iterator[Key]:
    for key, text in metadata.items():
        if key.startswith("ss_"):
            name, value = key.removeprefix("ss_"), _parse_value(text)
            if name == "optimizer":
                yield from _optimizer(key, text)
                continue
            yield _key(key, ARGUMENT_NAMES.get(name, name), value, text, metadata)
        elif key.startswith("modelspec.trigger_phrase") and text:
            yield Key(key, "trigger_word", text)


def _key(key: str, name: str, value: Any, text: str, metadata: Mapping[str, str]) -> Key:
    why: Message | None = None
    if value is None:
        why = OFF
    elif name in RESULTS:
        why = RESULT
    elif name in FOLDERS:
        why = ELSEWHERE
    elif name in ("sd_model_name", "vae_name"):
        why = BASE
    elif name == "max_train_steps" and _parse_value(metadata.get("ss_num_epochs", "None")):
        why = say("{key} wins.", key="ss_num_epochs")
    elif name not in paths_by_name() and name not in SPECIAL and name not in REASONS:
        why = RESULT
    if name == "resolution":
        value = ",".join(re.findall(r"\d+", text))
    elif name == "network_args" and isinstance(value, dict):
        value = [f"{option}={setting}" for option, setting in value.items()]
    elif name in ("network_dim", "network_alpha") and not isinstance(value, (int, float)):
        why = say("Layers of that file have different ones.")
    return Key(key, name, value, shown=text, why=why)


def _optimizer(key: str, text: str) -> Iterator[Key]:
    """ "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)": a class with its arguments."""
    name, _, arguments = text.partition("(")
    yield Key(key, "optimizer_type", name.rpartition(".")[2], shown=text)
    if arguments.rstrip(")").strip():
        yield Key(f"{key} (...)", "optimizer_args", re.split(r",\s*(?=\w+=)", arguments.rstrip().removesuffix(")")))


def _one_trainer(metadata: Mapping[str, str]) -> Iterator[Key]:
    try:
        settings = json.loads(metadata["ot_config"])
    except ValueError as error:
        raise ConfigError(
            [problem("ot_config", "it is not valid {kind} ({why}).", "Choose another file.", kind="JSON", why=str(error))]
        ) from error
    for path, value in _flatten(settings):
        name = ONE_TRAINER.get(path, "")
        if name and value is not None:
            yield Key(path, name, ONE_TRAINER_VALUES.get(str(value), value), shown=value)
        elif value not in (None, "", [], {}, False):
            yield Key(path, path, value, why=NOT_READ)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_value(text: str) -> Any:
    """The value that a metadata text stands for."""
    if text in ("None", "null", ""):
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return text
