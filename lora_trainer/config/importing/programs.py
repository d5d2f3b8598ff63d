"""Three programs around sd-scripts: what each calls sd-scripts' arguments, and what it fills in by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_trainer.config.importing.arguments import Key
from lora_trainer.config.importing.networks import network_defaults
from lora_trainer.config.importing.reasons import CONV, ITSELF, LYCORIS, OFF
from lora_trainer.config.importing.values import is_empty, number
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
"""What a command line without these means there, where it means something else here."""

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


def sd_scripts(flat: Mapping[str, Any]) -> tuple[list[Key], dict[str, Any]]:
    """Keys of a --config_file, whose tables are only for the eye, and sd-scripts' defaults where no key decides them."""
    keys = [Key(key, key.rpartition(".")[2], value) for key, value in flat.items()]
    return keys, _defaults({key.name: key.value for key in keys})


def lora_scripts(flat: Mapping[str, Any]) -> tuple[list[Key], dict[str, Any]]:
    """As sd_scripts; previews may be described by eight keys of their own, arguments by lists of their own."""
    keys, defaults = sd_scripts(flat)
    given = {key.name: key.value for key in keys}
    preset = any(key.key.startswith("metadata.") for key in keys)  # says only what it changes
    return [_lora_scripts_key(key, given) for key in keys], {} if preset else defaults


def _lora_scripts_key(key: Key, given: Mapping[str, Any]) -> Key:
    off = given.get("enable_preview") is False
    if key.key.startswith("metadata."):
        return Key(key.key, key.key, key.value)  # of the page's list of presets
    if key.name == "enable_preview":
        return Key(key.key, key.name, key.value, why=OFF if off else ITSELF)
    if key.name.startswith("sample_") or key.name in ("positive_prompts", "negative_prompts", "randomly_choice_prompt"):
        if off:
            return Key(key.key, key.name, key.value, why=NO_PREVIEW)
        if key.name == "positive_prompts" and not is_empty(key.value):
            return Key(key.key, "sample_prompts", _preview_line(given), shown=key.value)
        if (key.name in PREVIEW or key.name == "negative_prompts") and not is_empty(given.get("positive_prompts")):
            return Key(key.key, key.name, key.value, into="" if is_empty(key.value) else "sample.prompts")
    if key.name == "optimizer_args_custom" and is_empty(given.get("optimizer_args")):
        return Key(key.key, "optimizer_args", key.value)
    return key


def _preview_line(given: Mapping[str, Any]) -> str:
    words = [" ".join(str(given["positive_prompts"]).split())]
    if not is_empty(given.get("negative_prompts")):
        words.append("--n " + " ".join(str(given["negative_prompts"]).split()))
    words += [f"--{letter} {given[name]}" for name, letter in PREVIEW.items() if not is_empty(given.get(name))]
    return " ".join(words)


def kohya(flat: Mapping[str, Any]) -> tuple[list[Key], dict[str, Any]]:
    """Keys of a kohya_ss GUI file. A file that the GUI saved holds everything, so nothing is filled in."""
    return [_kohya_key(key, value, flat) for key, value in flat.items()], {}


def _kohya_key(key: str, value: Any, flat: Mapping[str, Any]) -> Key:
    name = KOHYA_NAMES.get(key, key)
    why, told = _kohya_reason(key, flat), value
    if key == "LoRA_type":
        value = LORA_TYPES.get(str(value), str(value))
    elif key == "lr_warmup" and number(value):
        value = f"{number(value):g}%"
    elif key in ("unet_lr", "text_encoder_lr") and _both_rates_zero(flat):
        why = say("Both rates are 0 there, which means the learning rate.")
    elif key in ("seed", "stop_text_encoder_training", "vae_batch_size") and not number(value):
        why = OFF
    elif key in LYCORIS and flat.get("LoRA_type", "Standard") == "Standard" and not is_empty(value):
        why = CONV
    return Key(key, name, value, shown=told, why=why)


def _kohya_reason(key: str, flat: Mapping[str, Any]) -> Message | None:
    """Three keys say how long a run is, two how long the warm-up; one wins."""
    epochs, steps = number(flat.get("max_train_epochs")), number(flat.get("max_train_steps"))
    if key == "epoch" and epochs:
        return say("{key} wins.", key="max_train_epochs")
    if key == "epoch" and steps:
        return say("{key} wins.", key="max_train_steps")
    if key == "max_train_epochs" and not epochs:
        return OFF
    if key == "max_train_steps" and not steps:
        return OFF
    if key == "lr_warmup" and number(flat.get("lr_warmup_steps")):
        return say("{key} wins.", key="lr_warmup_steps")
    if key == "lr_warmup_steps" and not number(flat.get(key)) and "lr_warmup" in flat:
        return OFF
    return None


def _both_rates_zero(flat: Mapping[str, Any]) -> bool:
    return not number(flat.get("unet_lr")) and not number(flat.get("text_encoder_lr"))


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts' own values, without those that another key of the file decides."""
    found = dict(SD_SCRIPTS_DEFAULTS)
    if not number(given.get("max_train_epochs")) and not number(given.get("max_train_steps")):
        found["steps.max_train_steps"] = 1600
    if not any(number(given.get(name)) for name in ("learning_rate", "unet_lr", "text_encoder_lr")):
        found["optimizer.learning_rate"] = 2e-6
    for section in ("save", "sample"):
        if number(given.get(f"{section}_every_n_steps")):
            found.pop(f"{section}.every_n_epochs")
    return found | network_defaults(given)


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested tables."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
