"""Warnings before the first step, about data set, captions, options and model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from lora_trainer import assets
from lora_trainer.config import effective
from lora_trainer.config.checks.effect_checks import is_set, no_effect, options_without_effect
from lora_trainer.config.checks.learning_rate_checks import learning_rate_warnings
from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.schema import LossConfig, SampleConfig, TrainConfig, ValidateConfig
from lora_trainer.data import caption_notes
from lora_trainer.data.sources.blueprint import largest_resolution
from lora_trainer.events import Warned
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.models.families import family
from lora_trainer.models.prediction_kinds import FLOW
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.planning.effect_checks import effect_warnings
from lora_trainer.train.planning.network_plan import pattern_hits, selected_layers
from lora_trainer.train.setup import inspect_checkpoint, preview_prompts

OptionWarning = tuple[str, Message]
"""(path of the option, what is wrong with it)."""
CONV_OPTIONS = ("network.conv_dim", "network.conv_alpha", "network.conv_block_dims", "network.conv_block_alphas", "network.use_tucker")
"""Options of convolutions larger than 1 x 1."""
DEFAULT_FLOW_SHIFT = SampleConfig().flow_shift
MIN_AREA_SHARE = 0.4
"""Share of a model's native area below which quality suffers, since it was not trained at such sizes."""


def early_warnings(config: TrainConfig, dataset: TrainingDataset, checkpoint: Path) -> list[Warned]:
    """All warnings of a run before its first step."""
    warnings = [Warned(message) for message in dataset.warnings]
    warnings += [Warned(note, "sample.prompts") for note in preview_prompts(config).warnings]
    warnings += [Warned(message, path) for path, message in caption_notes.caption_notes(dataset.train_records, dataset.caption_rules_of)]
    if not config.model.pretrained_model_name_or_path and assets.is_toy(checkpoint):
        warnings.append(
            Warned(
                say("No base model is chosen: this trains the small model that ships for trying things out; its LoRA fits no other."),
                "model.pretrained_model_name_or_path",
            )
        )
    warnings += _network_warnings(config, inspect_checkpoint(checkpoint, config.model))
    if not any(rate for rate in (effective.unet_lr(config), effective.text_encoder_lr(config))):
        warnings.append(Warned(say("The learning rate is 0: nothing will be learned."), "optimizer.learning_rate"))
    batch_size = dataset.batch_sizes[0] * config.steps.gradient_accumulation_steps
    warnings += [Warned(message, path) for path, message in learning_rate_warnings(config, batch_size)]
    warnings += _model_warnings(config, inspect_checkpoint(checkpoint, config.model))
    warnings += [Warned(message, path) for path, message in _effect_warnings(config, dataset)]
    warnings += [Warned(message, path) for path, message in validation_warnings(config.validate, len(dataset.validation_records))]
    return warnings


def _network_warnings(config: TrainConfig, facts: ModelFacts | None) -> Iterator[Warned]:
    """About an unusual scale, patterns that match nothing, and base weights that the result depends on."""
    network = config.network
    if network.alpha > network.dim and effective.network_scale(config) > 1:
        yield Warned(
            say("Alpha is larger than rank: the network is scaled by {scale}.", scale=round(effective.network_scale(config), 3)),
            "network.alpha",
        )
    for option, hits in pattern_hits(config, facts).items():
        for pattern in (pattern for pattern, count in hits.items() if not count):
            yield Warned(say("The pattern {pattern} hits no layer.", pattern=pattern), f"network.{option}")
    if not any(len(layer.shape.weight) == 4 and layer.shape.weight[2] > 1 for layer in selected_layers(config, facts)):
        for path in CONV_OPTIONS:
            if is_set(config, options()[path]):
                yield Warned(no_effect(path, say("no wide convolution is trained.")), path)
    if network.base_weights:
        names = ", ".join(Path(file).name for file in network.base_weights)
        yield Warned(
            say(
                "What is learned comes on top of {files}: use them together. Previews that the WebUI draws show it without them.",
                files=names,
            ),
            "network.base_weights",
        )


def _model_warnings(config: TrainConfig, facts: ModelFacts | None) -> Iterator[Warned]:
    """About options that do not suit the model; without facts it counts as an epsilon model."""
    prediction, zero = (facts.prediction, facts.zero_terminal_snr) if facts is not None else ("epsilon", False)
    for path, message in loss_warnings(config.loss, prediction=prediction, zero_terminal_snr=zero):
        yield Warned(message, path)
    if prediction != FLOW:
        yield from _flow_shift_warnings(config)
    if facts is None:
        return
    for note in facts.notes:
        yield Warned(note, "model.pretrained_model_name_or_path")
    (width, height), native = largest_resolution(config.data), facts.native_size
    if width * height < native * native * MIN_AREA_SHARE:
        template = "The pictures are trained at {width} x {height}, and the model was made for {native} x {native}: what it draws suffers."
        yield Warned(say(template, width=width, height=height, native=native), "data.resolution")
    if config.model.clip_skip > 1 and not family(facts.family).uses_clip_skip:
        label = layout.row(facts.family).label
        yield Warned(say("{label} always reads the same layer of its text: clip skip changes nothing.", label=label), "model.clip_skip")


def _flow_shift_warnings(config: TrainConfig) -> Iterator[Warned]:
    """About the sampler's shift, which only models of rectified flow have."""
    if config.sample.flow_shift != DEFAULT_FLOW_SHIFT:
        yield Warned(say("{option} is ignored: this model is not one of rectified flow.", option="sample.flow_shift"), "sample.flow_shift")
    for index, request in preview_prompts(config).requests:
        if request.flow_shift != config.sample.flow_shift:
            yield Warned(say("prompt {number}: --fs has no effect on models of this kind.", number=index + 1), "sample.prompts")


def _effect_warnings(config: TrainConfig, dataset: TrainingDataset) -> Iterator[OptionWarning]:
    """Options without effect; those of the loss are told with the model's."""
    without_effect = [warning for warning in options_without_effect(config) if not warning[0].startswith("loss.")]
    yield from without_effect
    known = {path for path, _ in without_effect}
    yield from (warning for warning in effect_warnings(config, dataset) if warning[0] not in known)


def loss_warnings(loss: LossConfig, *, prediction: str = "epsilon", zero_terminal_snr: bool = False) -> Iterator[OptionWarning]:
    """Warnings about options of the loss. `prediction` ("epsilon", "v" or "flow") and `zero_terminal_snr` are facts of the model."""
    whole = attrs.evolve(TrainConfig(), loss=loss)  # type: ignore[call-arg, misc]  # mypy takes no section for an attrs class
    yield from (warning for warning in options_without_effect(whole) if warning[0].startswith("loss."))
    yield from _redundant_options(loss)
    yield from _options_of_other_prediction(loss, prediction)
    if prediction == FLOW:
        yield from _unneeded_offsets(loss, "{option} is not needed: rectified flow draws dark and bright by itself.")
    if zero_terminal_snr:
        yield from _zero_terminal_snr_warnings(loss, prediction)


def validation_warnings(validate: ValidateConfig, count: int) -> Iterator[OptionWarning]:
    """Warnings about options of validation with `count` validation pictures."""
    path = "validate.early_stop_patience"
    if validate.early_stop_patience and not count:
        yield path, say("The run cannot end early: no pictures are held back for validation.")
    elif validate.early_stop_patience and not validate.every_n_steps and validate.every_n_epochs == 0:
        yield path, say("The run cannot end early: pictures are only validated before it and at its end.")


def _redundant_options(loss: LossConfig) -> Iterator[OptionWarning]:
    if loss.min_snr_gamma and loss.debiased_estimation_loss:
        yield (
            "loss.debiased_estimation_loss",
            say("Min-SNR and debiased estimation weigh the same steps down: nearly clean pictures hardly count. Use one of them."),
        )
    if loss.noise_offset and loss.multires_noise_iterations:
        yield (
            "loss.multires_noise_iterations",
            say("Noise offset and coarse noise both shift whole pictures: together they are easily too much. Use one of them."),
        )


def _options_of_other_prediction(loss: LossConfig, prediction: str) -> Iterator[OptionWarning]:
    if loss.discrete_flow_shift != 1.0 and prediction != FLOW:
        path = "loss.discrete_flow_shift"
        yield path, say("{option} is ignored: this model is not one of rectified flow.", option=path)
    if prediction == FLOW:
        return  # flow_checks refuses the others
    if loss.scale_v_pred_loss_like_noise_pred and prediction != "v":
        path = "loss.scale_v_pred_loss_like_noise_pred"
        yield path, say("{option} is ignored: this model predicts the noise, not v.", option=path)
    if loss.v_pred_like_loss and prediction == "v":
        path = "loss.v_pred_like_loss"
        yield path, say("{option} is ignored: this model predicts v already.", option=path)


def _zero_terminal_snr_warnings(loss: LossConfig, prediction: str) -> Iterator[OptionWarning]:
    """The last timestep of such a model is pure noise: the model learns the mean there, and SNR weights of epsilon are infinite."""
    yield from _unneeded_offsets(loss, "{option} is not needed: this model has zero terminal SNR and draws dark and bright by itself.")
    if prediction != "v" and (loss.min_snr_gamma or loss.debiased_estimation_loss):
        path = "loss.min_snr_gamma" if loss.min_snr_gamma else "loss.debiased_estimation_loss"
        yield path, say("{option} divides by a signal of 0 at the last step of this model: set loss.max_timestep = 999.", option=path)


def _unneeded_offsets(loss: LossConfig, template: str) -> Iterator[OptionWarning]:
    for name in ("noise_offset", "multires_noise_iterations"):
        if getattr(loss, name):
            yield f"loss.{name}", say(template, option=f"loss.{name}")
