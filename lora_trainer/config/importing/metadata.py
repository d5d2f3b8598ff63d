"""Settings from a trained file's metadata: sd-scripts' `ss_*` keys, which this trainer writes too, and OneTrainer's (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.importing.arguments import SPECIAL, Key, paths_by_name, translate_keys
from lora_trainer.config.importing.learning import Options
from lora_trainer.config.importing.networks import network_defaults, whole_matrix_notes
from lora_trainer.config.importing.reasons import OFF, REASONS
from lora_trainer.config.importing.result import Imported
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import ProgramKeys
from lora_trainer.config.importing.trainers.one_trainer import one_trainer_keys
from lora_trainer.config.importing.values import is_empty
from lora_trainer.errors import ConfigError, NothingToImport
from lora_trainer.messages import Message, say
from lora_trainer.parsing import parse_json

RESULT = say("It records a result of that run; it is not a setting.")
ELSEWHERE = say("The pictures are chosen here: set the folder.")
BASE = say("Only the name of the base model is known: choose it.")
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
FOLDERS = ("dataset_dirs", "reg_dataset_dirs")
DATASET_NAMES = {
    "batch_size_per_device": "data.batch_size",
    **{name: f"data.{name}" for name in ("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "resize_interpolation")},
    **{name: f"data.{name}" for name in ("bucket_reso_steps", "bucket_no_upscale")},
}
SUBSET_NAMES = {
    name: f"data.{name}"
    for name in (
        "num_repeats",
        "color_aug",
        "flip_aug",
        "random_crop",
        "shuffle_caption",
        "keep_tokens",
        "keep_tokens_separator",
        "secondary_separator",
        "enable_wildcard",
        "caption_prefix",
        "caption_suffix",
        "class_tokens",
    )
}
"""Keys of ss_datasets -> our options."""


def import_metadata(metadata: Mapping[str, str]) -> Imported:
    """The settings in a trained file's metadata. Every key is taken, or listed with the reason; nothing is filled in.

    Raises ConfigError if the metadata holds no settings.
    """
    program = _one_trainer(metadata) if "ot_config" in metadata else ProgramKeys(tuple(_sd_scripts(metadata)))
    settings = {key.name: key.value for key in program.keys if key.why is None}
    translated = translate_keys(program.keys, lambda name: None, network_defaults(settings))
    if not translated.taken:
        raise NothingToImport(
            [problem("", "the file's header holds no settings.", "Choose a file of this trainer, of sd-scripts or of OneTrainer.")]
        )
    values = translated.values
    notes = [
        *program.notes,
        *translated.notes,
        *whole_matrix_notes(settings),
        *_dataset_notes(metadata),
        *([] if values.get("data", {}).get("train_data_dir") or values.get("data", {}).get("subsets") else [ELSEWHERE]),
        *([] if values.get("model", {}).get("pretrained_model_name_or_path") else [BASE]),
    ]
    kind = "onetrainer" if "ot_config" in metadata else "metadata"
    return Imported(kind, values, translated.taken, translated.left, (), tuple(notes))


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
    elif name == "datasets":
        found = _datasets(text)
        return (
            Key(key, name, value, shown=text, why=found) if isinstance(found, Message) else Key(key, name, value, shown=text, options=found)
        )
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


def _one_trainer(metadata: Mapping[str, str]) -> ProgramKeys:
    try:
        settings = parse_json(metadata["ot_config"])
    except ValueError as error:
        raise ConfigError(
            [problem("ot_config", "it is not valid {kind} ({why}).", "Choose another file.", kind="JSON", why=str(error))]
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError([problem("ot_config", "it holds no settings.", "Choose another file.")])
    return one_trainer_keys(settings, lambda name: None)


def _datasets(text: str) -> Options | Message:
    """What all data sets of a run have in common; sd-scripts lists them where a dataset TOML was used."""
    datasets, subsets = _entries(text)
    trained = [subset for subset in subsets if subset.get("is_reg") is not True]
    options_found: Options = []
    for entries, names in ((datasets, DATASET_NAMES), (trained, SUBSET_NAMES)):
        for name, path in names.items():
            values = [entry.get(name) for entry in entries]
            if values and not is_empty(values[0]) and all(value == values[0] for value in values):
                options_found.append((path, values[0]))
    return options_found or ELSEWHERE


def _entries(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The data sets of `ss_datasets`, and the folders of all of them; none where it cannot be read."""
    try:
        content = parse_json(text)
    except ValueError:
        return [], []
    datasets = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
    lists = [entry["subsets"] for entry in datasets if isinstance(entry.get("subsets"), list)]
    return datasets, [subset for entries in lists for subset in entries if isinstance(subset, dict)]


def _dataset_notes(metadata: Mapping[str, str]) -> Iterator[Message]:
    """What `ss_datasets` says besides: the folders, and each value that differs from folder to folder, or from set to set."""
    datasets, subsets = _entries(metadata.get("ss_datasets", ""))
    named = [(str(subset.get("image_dir") or subset.get("metadata_file") or "?"), subset) for subset in subsets]
    if named:
        folders = [f"{name} x {subset.get('num_repeats', 1)}" for name, subset in named if subset.get("is_reg") is not True]
        regularisation = [f"{name} x {subset.get('num_repeats', 1)}" for name, subset in named if subset.get("is_reg") is True]
        yield say("ss_datasets: the folders and their repeats were {folders}.", folders=", ".join(folders) or "-")
        if regularisation:
            yield say("ss_datasets: folders of regularisation pictures were {folders}.", folders=", ".join(regularisation))
    trained = [(name, subset) for name, subset in named if subset.get("is_reg") is not True]
    numbered = [(str(number), entry) for number, entry in enumerate(datasets, start=1)]
    for entries, names in ((numbered, DATASET_NAMES), (trained, SUBSET_NAMES)):
        for name in names:
            values = [entry.get(name) for _, entry in entries]
            if any(value != values[0] for value in values):
                shown = ", ".join(f"{place}: {value}" for (place, _), value in zip(entries, values, strict=True))
                yield say("ss_datasets: {name} differs ({values}), so it is not taken: set it for each folder.", name=name, values=shown)


def _parse_value(text: str) -> Any:
    """The value that a metadata text stands for."""
    if text in ("None", "null", ""):
        return None
    if text in ("True", "False"):
        return text == "True"
    try:
        return parse_json(text)
    except ValueError:
        return text
