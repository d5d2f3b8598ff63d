"""Which program wrote a settings file, told by marks of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.importing.arguments import paths_by_name
from lora_trainer.config.importing.forms import Content
from lora_trainer.config.importing.reasons import REASONS
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import KOHYA_NAMES
from lora_trainer.config.importing.values import flatten

CONCEPT_KEYS = ("instance_data_dir", "instance_prompt")
LORA_SCRIPTS_KEYS = ("model_train_type", "lr_restart_cycles", "positive_prompts", "enable_preview", "lycoris_algo", "optimizer_args_custom")
ONE_TRAINER_KEYS = frozenset(
    [
        "training_method",
        "base_model_name",
        "output_model_destination",
        "concept_file_name",
        "learning_rate_scheduler",
        "learning_rate_warmup_steps",
        "peft_type",
        "train_dtype",
        "workspace_dir",
        "sample_definition_file_name",
        "output_model_format",
        "lora_weight_dtype",
        "optimizer_defaults",
        "weight_dtype",
        "only_cache",
        "unet_learning_rate",
        "train_unet",
        "offset_noise_weight",
    ]
)
SIMPLE_TUNER_KEYS = frozenset(
    [
        "model_family",
        "data_backend_config",
        "lycoris_config",
        "lora_type",
        "lora_rank",
        "lora_alpha",
        "checkpointing_steps",
        "validation_prompt",
        "resolution_type",
        "num_train_epochs",
        "report_to",
        "aspect_bucket_rounding",
        "minimum_image_size",
        "caption_dropout_probability",
        "validation_steps",
        "validation_step_interval",
        "checkpoint_step_interval",
    ]
)
PRESET_KEYS = frozenset(
    [
        "enable_conv",
        "unet_target_module",
        "unet_target_name",
        "text_encoder_target_module",
        "text_encoder_target_name",
        "target_module",
        "target_name",
        "module_algo_map",
        "name_algo_map",
        "lora_prefix",
        "use_fnmatch",
        "exclude_name",
        "target_exclude",
    ]
)
LYCORIS_KEYS = frozenset(
    [
        "multiplier",
        "linear_dim",
        "linear_alpha",
        "apply_preset",
        "bypass_mode",
        "full_matrix",
        "conv_dim",
        "conv_alpha",
        "factor",
        "dropout",
    ]
)

OWN_TABLES = frozenset(path.partition(".")[0] for path in options() if "." in path)


def detect_kind(content: Content) -> str:
    """A key of KINDS; "preset" for a LyCORIS preset, "command" for a command line, "" if no program is known by it."""
    values = content.values
    if content.form == "command":
        return "command"
    if isinstance(values, list):
        return _kind_of_list(values)
    names = {key.removeprefix("--").replace("-", "_") for key in values}
    if _is_ai_toolkit(values):
        return "ai-toolkit"
    if len(names & ONE_TRAINER_KEYS) >= 2 and not names & {"LoRA_type", "network_module"}:
        return "onetrainer"
    if "concepts_list" in values:
        return "dreambooth"
    if _is_simple_tuner(names):
        return "simpletuner"
    if names and names <= PRESET_KEYS:
        return "preset"
    if "algo" in names and names & LYCORIS_KEYS and not names & {"network_module", "train_batch_size"}:
        return "lycoris"
    if any(name in values for name in CONCEPT_KEYS):
        return "dreambooth"
    if any(isinstance(entry, Mapping) for entry in values.get("datasets", ()) if isinstance(values.get("datasets"), list)):
        return "dataset"
    return "" if content.form == "YAML" else _kind_by_names(values, is_json=content.form == "JSON")


def _kind_of_list(entries: list[Any]) -> str:
    tables = [entry for entry in entries if isinstance(entry, Mapping)]
    if any("dataset_type" in table or ("id" in table and "type" in table) for table in tables):
        return "simpletuner"
    if any(name in table for table in tables for name in CONCEPT_KEYS):
        return "dreambooth"
    if any("path" in table and isinstance(table.get("image"), Mapping) for table in tables):
        return "onetrainer"
    return ""


def _is_ai_toolkit(values: Mapping[str, Any]) -> bool:
    config = values.get("config")
    return "job" in values and isinstance(config, Mapping) and isinstance(config.get("process"), list)


def _is_simple_tuner(names: set[str]) -> bool:
    marks = names & SIMPLE_TUNER_KEYS
    return not names & {"LoRA_type", "network_module", "network_dim"} and (("model_family" in names and len(marks) >= 2) or len(marks) >= 3)


def _kind_by_names(values: Mapping[str, Any], *, is_json: bool) -> str:
    """By whose names most keys have."""
    flat = dict(flatten(values))
    names = {key.rpartition(".")[2] for key in flat}
    own_keys = sum(key in options() for key in flat)
    ours = sum(key in options() or key == "version" or key.partition(".")[0] in OWN_TABLES for key in flat)
    if "version" in flat and not is_json and 2 * ours >= len(flat):
        return "own"
    if not is_json and 2 * ours < len(flat) and not own_keys and not any(name in paths_by_name() or name in REASONS for name in names):
        return ""
    foreign_keys = sum(name in paths_by_name() or name in REASONS or (is_json and name in KOHYA_NAMES) for name in names)
    if is_json:
        return "own" if own_keys >= max(1, foreign_keys) and 2 * ours >= len(flat) else "kohya_ss"
    if "metadata" in values:
        return "lora-scripts"
    if own_keys >= foreign_keys and (own_keys or not foreign_keys):
        return "own"
    return "lora-scripts" if names & set(LORA_SCRIPTS_KEYS) or "additional_network" in values else "sd-scripts"
