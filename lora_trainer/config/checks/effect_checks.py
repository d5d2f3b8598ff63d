"""Options that are set and have no effect because of other options (no torch)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lora_trainer.config import effective
from lora_trainer.config.changes import value_at
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES
from lora_trainer.config.choices.optimizers import CLASS_PATH, SCHEDULE_CHOICES
from lora_trainer.config.param import Condition, DeclaredOption
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import Message, say

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
Rule = Callable[[TrainConfig], Message | None]
"""Why an option has no effect; None: it has one."""


def options_without_effect(config: TrainConfig) -> Iterator[tuple[str, Message]]:
    """(option, why it has no effect) of each option that differs from its default while the others make it meaningless."""
    for path, option in options().items():
        if not is_set(config, option):
            continue
        unmet = next((condition for condition in option.option.when if not _is_met(config, condition)), None)
        if unmet is not None and unmet.values:
            values = {"option": path, "other": unmet.path, "value": value_at(config, unmet.path)}
            yield path, say("{option} has no effect while {other} is {value}.", **values)
        elif unmet is not None:
            yield path, off(path, unmet.path)
        elif (rule := RULES.get(path)) is not None and (reason := rule(config)) is not None:
            yield path, reason


def is_set(config: TrainConfig, option: DeclaredOption) -> bool:
    """Whether the option asks for something: it differs from its default and is not switched off or empty."""
    value = value_at(config, option.path)
    is_off = value in ("", (), None) or (not value and not option.default) or value is False
    return value != option.default and not is_off


def off(option: str, other: str) -> Message:
    """That the option has no effect because the other one is off."""
    return say("{option} has no effect while {other} is off.", option=option, other=other)


def no_effect(option: str, why: Message) -> Message:
    """That the option has no effect, and why."""
    return say("{option} has no effect: {why}", option=option, why=why)


def _is_met(config: TrainConfig, condition: Condition) -> bool:
    value = value_at(config, condition.path)
    return value in condition.values if condition.values else bool(value)


# --- learning ---


def _learning_rate(config: TrainConfig) -> Message | None:
    has_own = config.optimizer.unet_lr is not None and config.optimizer.text_encoder_lr is not None
    return no_effect("optimizer.learning_rate", say("U-Net and text encoder have rates of their own.")) if has_own else None


def _scale_lr(config: TrainConfig) -> Message | None:
    data, steps = config.data, config.steps
    is_one = data.batch_size * steps.gradient_accumulation_steps == 1 and not data.subsets and not data.dataset_config.strip()
    return no_effect("optimizer.scale_lr", say("a step has one picture.")) if is_one else None


def _lora_plus(path: str, part: str) -> Rule:
    def rule(config: TrainConfig) -> Message | None:
        if not NETWORK_KINDS[NETWORK_TYPES[config.network.type].kind].lora_plus:
            return say("{option} has no effect while {other} is {value}.", option=path, other="network.type", value=config.network.type)
        if part and part not in effective.trained_parts(config):
            return _untrained(path, part)
        optimizer = config.optimizer
        if not part and None not in (optimizer.loraplus_unet_lr_ratio, optimizer.loraplus_text_encoder_lr_ratio):
            return no_effect(path, say("U-Net and text encoder have ratios of their own."))
        return no_effect(path, say("with 1 both matrices learn alike.")) if value_at(config, path) == 1 else None

    return rule


def _untrained(path: str, part: str) -> Message:
    return no_effect(path, say("the text encoder is not trained.") if part == "text_encoder" else say("the U-Net is not trained."))


def _of_part(path: str, part: str) -> Rule:
    """For an option of one part of the model."""
    return lambda config: None if part in effective.trained_parts(config) else _untrained(path, part)


def _max_train_steps(config: TrainConfig) -> Message | None:
    if not config.steps.max_train_epochs:
        return None
    return say("{option} has no effect beside {other}: epochs win.", option="steps.max_train_steps", other="steps.max_train_epochs")


def _schedule_args(config: TrainConfig) -> Message | None:
    name = config.schedule.type
    if name == "piecewise_constant" or (name not in SCHEDULE_CHOICES and CLASS_PATH.fullmatch(name)):
        return None
    return say("{option} has no effect while {other} is {value}.", option="schedule.args", other="schedule.type", value=name)


def _rest(config: TrainConfig) -> Message | None:
    return None if config.steps.pause_seconds else off("steps.pause_after_n_epochs", "steps.pause_seconds")


def _timestep_sampling(config: TrainConfig) -> Message | None:
    return (
        off("loss.timestep_sampling", "loss.mode_scale") if config.loss.timestep_sampling == "mode" and not config.loss.mode_scale else None
    )


def _multires(config: TrainConfig) -> Message | None:
    return None if config.loss.multires_noise_discount else off("loss.multires_noise_iterations", "loss.multires_noise_discount")


# --- network ---


def _dora_axis(config: TrainConfig) -> Message | None:
    network = config.network
    return None if network.dora_wd or NETWORK_TYPES[network.type].fixed.get("dora") else off("network.dora_axis", "network.dora_wd")


def _decompose_both(config: TrainConfig) -> Message | None:
    if not config.network.full_matrix:
        return None
    return say("{option} has no effect while {other} is on.", option="network.decompose_both", other="network.full_matrix")


def _zero_threshold(config: TrainConfig) -> Message | None:
    network = config.network
    has_weights = network.down_lr_weight.strip() or network.mid_lr_weight.strip() or network.up_lr_weight.strip()
    return None if has_weights else no_effect("network.block_lr_zero_threshold", say("no rates by block are given."))


# --- model and memory ---


def _hub_token(config: TrainConfig) -> Message | None:
    names = (config.model.pretrained_model_name_or_path, config.model.vae)
    if any(HUB_NAME.fullmatch(name.strip()) and not Path(name.strip()).exists() for name in names):
        return None
    return no_effect("model.hub_token", say("neither the model nor the VAE is fetched from a Hub."))


def _pictures_at_once(config: TrainConfig) -> Message | None:
    data = config.data
    if data.subsets or data.dataset_config.strip() or config.memory.pictures_at_once < data.batch_size:
        return None
    values = {"option": "memory.pictures_at_once", "other": "data.batch_size", "value": data.batch_size}
    return say("{option} has no effect while {other} is {value}.", **values)


def _compile(config: TrainConfig) -> Message | None:
    network = config.network
    draws = network.dropout or network.rank_dropout or network.module_dropout or network.type == "dylora"
    return no_effect("memory.compile", say("the network makes random choices in each step.")) if draws else None


def _cuda_graphs(config: TrainConfig) -> Message | None:
    if config.memory.device.strip().lower() == "cpu":
        return say("{option} has no effect while {other} is {value}.", option="memory.cuda_graphs", other="memory.device", value="cpu")
    return None


# --- previews, validation, files, logs ---


def draws_previews(config: TrainConfig) -> bool:
    """Whether there is anything to draw."""
    return bool(effective.prompt_lines(config) or config.sample.prompt_file.strip())


def _of_previews(path: str) -> Rule:
    return lambda config: None if draws_previews(config) else no_effect(path, say("there is no preview prompt."))


def _previews_by_steps(config: TrainConfig) -> Message | None:
    if config.sample.every_n_epochs:
        return say("{option} has no effect beside {other}: epochs win.", option="sample.every_n_steps", other="sample.every_n_epochs")
    return _of_previews("sample.every_n_steps")(config)


def _never_drawn(path: str) -> Rule:
    def rule(config: TrainConfig) -> Message | None:
        sample = config.sample
        if sample.at_first or effective.interval_epochs(sample) or effective.interval_steps(sample):
            return None
        return no_effect(path, say("previews are drawn neither before the training nor by epochs or steps."))

    return rule


def _of_tensorboard(path: str) -> Rule:
    def rule(config: TrainConfig) -> Message | None:
        log = config.log
        if log.log_with == "tensorboard" or (log.log_with == "auto" and log.logging_dir.strip()):
            return None
        return no_effect(path, say("nothing is logged to TensorBoard."))

    return rule


# --- pictures ---


def _bucket_side(path: str) -> Rule:
    """For a limit of the sides of buckets: the training size is within the limits, whatever they are."""

    def rule(config: TrainConfig) -> Message | None:
        data, value = config.data, value_at(config, path)
        if data.bucket_no_upscale:
            return say("{option} has no effect while {other} is on.", option=path, other="data.bucket_no_upscale")
        size = effective.resolution(config)
        if data.subsets or data.dataset_config.strip():
            return None
        if (path == "data.min_bucket_reso" and value > min(size)) or (path == "data.max_bucket_reso" and value < max(size)):
            values = {"option": path, "value": value, "width": size[0], "height": size[1]}
            return say("{option} = {value} is not kept: the training size, {width} x {height}, is always allowed.", **values)
        return None

    return rule


RULES: Mapping[str, Rule] = {
    "data.max_bucket_reso": _bucket_side("data.max_bucket_reso"),
    "data.min_bucket_reso": _bucket_side("data.min_bucket_reso"),
    "log.log_prefix": _of_tensorboard("log.log_prefix"),
    "log.log_tracker_name": _of_tensorboard("log.log_tracker_name"),
    "log.logging_dir": _of_tensorboard("log.logging_dir"),
    "loss.multires_noise_iterations": _multires,
    "loss.timestep_sampling": _timestep_sampling,
    "memory.compile": _compile,
    "memory.cuda_graphs": _cuda_graphs,
    "memory.pictures_at_once": _pictures_at_once,
    "model.hub_token": _hub_token,
    "network.block_alphas": _of_part("network.block_alphas", "unet"),
    "network.block_dims": _of_part("network.block_dims", "unet"),
    "network.block_lr_zero_threshold": _zero_threshold,
    "network.decompose_both": _decompose_both,
    "network.dora_axis": _dora_axis,
    "network.down_lr_weight": _of_part("network.down_lr_weight", "unet"),
    "network.mid_lr_weight": _of_part("network.mid_lr_weight", "unet"),
    "network.text_encoder_alpha": _of_part("network.text_encoder_alpha", "text_encoder"),
    "network.text_encoder_dim": _of_part("network.text_encoder_dim", "text_encoder"),
    "network.up_lr_weight": _of_part("network.up_lr_weight", "unet"),
    "optimizer.learning_rate": _learning_rate,
    "optimizer.loraplus_lr_ratio": _lora_plus("optimizer.loraplus_lr_ratio", ""),
    "optimizer.loraplus_text_encoder_lr_ratio": _lora_plus("optimizer.loraplus_text_encoder_lr_ratio", "text_encoder"),
    "optimizer.loraplus_unet_lr_ratio": _lora_plus("optimizer.loraplus_unet_lr_ratio", "unet"),
    "optimizer.scale_lr": _scale_lr,
    "sample.every_n_epochs": _of_previews("sample.every_n_epochs"),
    "sample.every_n_steps": _previews_by_steps,
    "sample.prompt_file": _never_drawn("sample.prompt_file"),
    "sample.prompts": _never_drawn("sample.prompts"),
    "sample.sampler": _of_previews("sample.sampler"),
    "schedule.args": _schedule_args,
    "steps.max_train_steps": _max_train_steps,
    "steps.pause_after_n_epochs": _rest,
}
"""Rules besides the conditions that the options themselves declare."""
