"""sd-scripts and two front ends: how each names sd-scripts' arguments, and its own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_trainer.config.importing.arguments import Key
from lora_trainer.config.importing.learning import ReadText
from lora_trainer.config.importing.networks import network_defaults
from lora_trainer.config.importing.reasons import CONV, ITSELF, LIKE_EMPTY, LYCORIS, NEW_SEED, OFF, START
from lora_trainer.config.importing.trainers.command_lines import UNCLEAR, CommandLine, command_notes
from lora_trainer.config.importing.values import flatten, is_empty, to_number
from lora_trainer.messages import Message, say

SD_SCRIPTS_DEFAULTS: Mapping[str, Any] = {
    "data.enable_bucket": False,
    "data.cache_latents": False,
    "network.dim": 4,
    "network.alpha": 1.0,
    "schedule.type": "constant",
    "memory.mixed_precision": "no",
    "save.precision": "float",
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
    "conv_dims": "conv_block_dims",
    "conv_alphas": "conv_block_alphas",
}
LORA_TYPES = {
    "Standard": "networks.lora",
    "Kohya DyLoRA": "networks.dylora",
    "LoRA-FA": "networks.lora_fa",
}
PREVIEW = {"sample_width": "w", "sample_height": "h", "sample_cfg": "l", "sample_seed": "d", "sample_steps": "s"}
_YES = (True, "true", "True")
NO_PREVIEW = say("Previews are switched off in the file.")


@attrs.frozen
class ProgramKeys:
    """A file's keys, the other program's defaults where no key sets them, and notes.

    `context`: values under sd-scripts' names that the file takes for granted.
    """

    keys: tuple[Key, ...]
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    notes: tuple[Message, ...] = ()
    context: Mapping[str, Any] = attrs.field(factory=dict)


def command_keys(command: CommandLine, read: ReadText) -> ProgramKeys:
    """Arguments of a command line; those of the launcher are not needed here."""
    keys = [Key(f"accelerate {name}", name, value, why=START) for name, value in command.launcher.items()]
    for name, value in command.arguments.items():
        why = UNCLEAR if name in command.unclear else None
        if name == "config_file":
            why = say("The settings are in {file}: import that file.", file=value)
        keys.append(Key(name, name, value, why=why))
    defaults = {} if "config_file" in command.arguments else _defaults(command.arguments)
    return ProgramKeys(tuple(keys), defaults, tuple(command_notes(command)))


def sd_scripts_keys(values: Mapping[str, Any], read: ReadText) -> ProgramKeys:
    """Keys of a --config_file, whose tables have no meaning but hold no further ones, and sd-scripts' defaults where no key sets them."""
    keys = [Key(key, key.rpartition(".")[2] if key.count(".") <= 1 else key, value) for key, value in flatten(values)]
    return ProgramKeys(tuple(keys), _defaults({key.name: key.value for key in keys}))


def lora_scripts_keys(values: Mapping[str, Any], read: ReadText) -> ProgramKeys:
    """As `sd_scripts_keys`; previews may have eight keys of their own, arguments their own lists."""
    program = sd_scripts_keys(values, read)
    settings = {key.name: key.value for key in program.keys}
    is_preset = any(key.key.startswith("metadata.") for key in program.keys)  # a preset holds only what it changes
    keys = tuple(_lora_scripts_key(key, settings) for key in program.keys)
    return ProgramKeys(keys, {} if is_preset else program.defaults)


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


def kohya_keys(values: Mapping[str, Any], read: ReadText) -> ProgramKeys:
    """Keys of a kohya_ss GUI file. The GUI saves every setting, so there are no defaults."""
    flat = dict(flatten(values))
    return ProgramKeys(tuple(_kohya_key(key, value, flat) for key, value in flat.items()))


def _kohya_key(key: str, value: Any, flat: Mapping[str, Any]) -> Key:
    name = KOHYA_NAMES.get(key, key)
    why, shown = _kohya_reason(key, flat), value
    if key == "LoRA_type":
        value = LORA_TYPES.get(str(value), str(value))
    elif key == "lr_warmup" and to_number(value):
        value = f"{to_number(value):g}%"
    elif key == "text_encoder_lr" and _has_second_rate(flat):
        value = [value, flat["t5xxl_lr"]]
    elif key == "t5xxl_lr" and _has_second_rate(flat):
        return Key(key, key, value, merged_into="optimizer.text_encoder_lr")
    elif key in ("unet_lr", "text_encoder_lr") and _both_rates_zero(flat):
        why = say("Both rates are 0 there, which means the learning rate.")
    elif key == "seed" and not to_number(value):
        why = NEW_SEED
    elif key == "vae_batch_size" and not to_number(value):
        why = LIKE_EMPTY
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


def _has_second_rate(flat: Mapping[str, Any]) -> bool:
    """Whether the rate that the window calls T5XXL's goes to SDXL's second text encoder."""
    is_xl = flat.get("sdxl") in _YES or flat.get("sdxl_checkbox") in _YES
    return is_xl and to_number(flat.get("text_encoder_lr")) > 0 and to_number(flat.get("t5xxl_lr")) > 0


def _both_rates_zero(flat: Mapping[str, Any]) -> bool:
    return not to_number(flat.get("unet_lr")) and not to_number(flat.get("text_encoder_lr"))


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts' defaults, without those that another key of the file overrides."""
    defaults = dict(SD_SCRIPTS_DEFAULTS)
    if not to_number(settings.get("max_train_epochs")) and not to_number(settings.get("max_train_steps")):
        defaults["steps.max_train_steps"] = 1600
    if is_empty(settings.get("learning_rate")) and not _sets_every_rate(settings):
        defaults["optimizer.learning_rate"] = 2e-6
    for section in ("save", "sample"):
        if to_number(settings.get(f"{section}_every_n_steps")):
            defaults.pop(f"{section}.every_n_epochs")
    return defaults | network_defaults(settings)


def _sets_every_rate(settings: Mapping[str, Any]) -> bool:
    """Whether no part is left to the learning rate."""
    parts = {"unet_lr": "network_train_text_encoder_only", "text_encoder_lr": "network_train_unet_only"}
    return all(not is_empty(settings.get(rate)) or settings.get(switch) in _YES for rate, switch in parts.items())
