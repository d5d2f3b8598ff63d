"""sd-scripts and two front ends: how each names sd-scripts' arguments, and its own defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_trainer.config.importing.arguments import Key
from lora_trainer.config.importing.networks import network_defaults
from lora_trainer.config.importing.reasons import CONV, ITSELF, LYCORIS, OFF
from lora_trainer.config.importing.values import is_empty, to_number
from lora_trainer.messages import Message, say

SD_SCRIPTS_DEFAULTS: Mapping[str, Any] = {
    "data.enable_bucket": False,
    "data.cache_latents": False,
    "network.dim": 4,
    "network.alpha": 1.0,
    "schedule.type": "constant",
    "save.every_n_epochs": 0,
    "sample.every_n_epochs": 0,
}
"""sd-scripts' defaults where they differ from ours."""

KOHYA_NAMES = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "sdxl_no_half_vae": "no_half_vae",
    "lora_network_weights": "network_weights",
    "epoch": "max_train_epochs",
    "lr_warmup": "lr_warmup_steps",
    "LoRA_type": "network_module",
}
LORA_TYPES = {
    "Standard": "networks.lora",
    "Kohya DyLoRA": "networks.dylora",
    "LoRA-FA": "networks.lora_fa",
}
PREVIEW = {"sample_width": "w", "sample_height": "h", "sample_cfg": "l", "sample_seed": "d", "sample_steps": "s"}
NO_PREVIEW = say("Previews are switched off in the file.")


def sd_scripts_keys(flat: Mapping[str, Any]) -> tuple[list[Key], dict[str, Any]]:
    """Keys of a --config_file, whose tables have no meaning, and sd-scripts' defaults where no key sets them."""
    keys = [Key(key, key.rpartition(".")[2], value) for key, value in flat.items()]
    return keys, _defaults({key.name: key.value for key in keys})


def lora_scripts_keys(flat: Mapping[str, Any]) -> tuple[list[Key], dict[str, Any]]:
    """As `sd_scripts_keys`; previews may have eight keys of their own, arguments their own lists."""
    keys, defaults = sd_scripts_keys(flat)
    settings = {key.name: key.value for key in keys}
    is_preset = any(key.key.startswith("metadata.") for key in keys)  # a preset holds only what it changes
    return [_lora_scripts_key(key, settings) for key in keys], {} if is_preset else defaults


def _lora_scripts_key(key: Key, settings: Mapping[str, Any]) -> Key:
    is_off = settings.get("enable_preview") is False
    if key.key.startswith("metadata."):
        return Key(key.key, key.key, key.value)  # for the front end's list of presets
    if key.name == "enable_preview":
        return Key(key.key, key.name, key.value, why=OFF if is_off else ITSELF)
    if key.name.startswith("sample_") or key.name in ("positive_prompts", "negative_prompts", "randomly_choice_prompt"):
        if is_off:
            return Key(key.key, key.name, key.value, why=NO_PREVIEW)
        if key.name == "positive_prompts" and not is_empty(key.value):
            return Key(key.key, "sample_prompts", _preview_line(settings), shown=key.value)
        if (key.name in PREVIEW or key.name == "negative_prompts") and not is_empty(settings.get("positive_prompts")):
            return Key(key.key, key.name, key.value, merged_into="" if is_empty(key.value) else "sample.prompts")
    if key.name == "optimizer_args_custom" and is_empty(settings.get("optimizer_args")):
        return Key(key.key, "optimizer_args", key.value)
    return key


def _preview_line(settings: Mapping[str, Any]) -> str:
    words = [" ".join(str(settings["positive_prompts"]).split())]
    if not is_empty(settings.get("negative_prompts")):
        words.append("--n " + " ".join(str(settings["negative_prompts"]).split()))
    words += [f"--{letter} {settings[name]}" for name, letter in PREVIEW.items() if not is_empty(settings.get(name))]
    return " ".join(words)


def kohya_keys(flat: Mapping[str, Any]) -> tuple[list[Key], dict[str, Any]]:
    """Keys of a kohya_ss GUI file. The GUI saves every setting, so there are no defaults."""
    return [_kohya_key(key, value, flat) for key, value in flat.items()], {}


def _kohya_key(key: str, value: Any, flat: Mapping[str, Any]) -> Key:
    name = KOHYA_NAMES.get(key, key)
    why, shown = _kohya_reason(key, flat), value
    if key == "LoRA_type":
        value = LORA_TYPES.get(str(value), str(value))
    elif key == "lr_warmup" and to_number(value):
        value = f"{to_number(value):g}%"
    elif key in ("unet_lr", "text_encoder_lr") and _both_rates_zero(flat):
        why = say("Both rates are 0 there, which means the learning rate.")
    elif key in ("seed", "stop_text_encoder_training", "vae_batch_size") and not to_number(value):
        why = OFF
    elif key in LYCORIS and flat.get("LoRA_type", "Standard") == "Standard" and not is_empty(value):
        why = CONV
    return Key(key, name, value, shown=shown, why=why)


def _kohya_reason(key: str, flat: Mapping[str, Any]) -> Message | None:
    """Three keys set the length of the run, two the warm-up; one of each wins."""
    epochs, steps = to_number(flat.get("max_train_epochs")), to_number(flat.get("max_train_steps"))
    if key == "epoch" and epochs:
        return say("{key} wins.", key="max_train_epochs")
    if key == "epoch" and steps:
        return say("{key} wins.", key="max_train_steps")
    if key == "max_train_epochs" and not epochs:
        return OFF
    if key == "max_train_steps" and not steps:
        return OFF
    if key == "lr_warmup" and to_number(flat.get("lr_warmup_steps")):
        return say("{key} wins.", key="lr_warmup_steps")
    if key == "lr_warmup_steps" and not to_number(flat.get(key)) and "lr_warmup" in flat:
        return OFF
    return None


def _both_rates_zero(flat: Mapping[str, Any]) -> bool:
    return not to_number(flat.get("unet_lr")) and not to_number(flat.get("text_encoder_lr"))


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts' defaults, without those that another key of the file overrides."""
    defaults = dict(SD_SCRIPTS_DEFAULTS)
    if not to_number(settings.get("max_train_epochs")) and not to_number(settings.get("max_train_steps")):
        defaults["steps.max_train_steps"] = 1600
    if not any(to_number(settings.get(name)) for name in ("learning_rate", "unet_lr", "text_encoder_lr")):
        defaults["optimizer.learning_rate"] = 2e-6
    for section in ("save", "sample"):
        if to_number(settings.get(f"{section}_every_n_steps")):
            defaults.pop(f"{section}.every_n_epochs")
    return defaults | network_defaults(settings)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested tables."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
