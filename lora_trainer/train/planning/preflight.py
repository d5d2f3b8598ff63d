"""What the user should know before the first step: of pictures, captions, settings and the model's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_trainer import assets
from lora_trainer.config import effective
from lora_trainer.config.checks.learning_rate_checks import rate_notes
from lora_trainer.config.param import Condition, declared
from lora_trainer.config.schema import LossConfig, TrainConfig, ValidateConfig
from lora_trainer.data import caption_notes
from lora_trainer.data.sources.blueprint import training_size
from lora_trainer.events import Warned
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.models.families import family
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.planning.network_plan import pattern_hits
from lora_trainer.train.setup import facts_of, prompts_of

FAR_BELOW = 0.4
"""Share of a model's own area below which its pictures fall apart: it was never shown such sizes."""


def early_warnings(config: TrainConfig, pictures: TrainingDataset, checkpoint: Path) -> list[Warned]:
    """What the user should know before the first step."""
    found = [Warned(message) for message in pictures.warnings]
    found += [Warned(note, "sample.prompts") for note in prompts_of(config).notes]
    found += [Warned(message, path) for path, message in caption_notes.notes(pictures.trained, pictures.rules_of)]
    if not config.model.pretrained_model_name_or_path and checkpoint == assets.toy_checkpoint():
        found.append(
            Warned(
                say("No base model is chosen: this trains the small model that ships for trying things out; its LoRA fits no other."),
                "model.pretrained_model_name_or_path",
            )
        )
    found += _of_the_network(config, facts_of(checkpoint, config.model))
    if not any(rate for rate in (effective.unet_lr(config), effective.text_encoder_lr(config))):
        found.append(Warned(say("The learning rate is 0: nothing will be learned."), "optimizer.learning_rate"))
    together = pictures.batch_sizes[0] * config.steps.gradient_accumulation_steps
    found += [Warned(message, path) for path, message in rate_notes(config, together)]
    found += _of_the_model(config, facts_of(checkpoint, config.model))
    found += [Warned(message, path) for path, message in of_validation(config.validate, len(pictures.held))]
    return found


def _of_the_network(config: TrainConfig, facts: ModelFacts | None) -> Iterator[Warned]:
    """A strength that is unusual, patterns without an effect, files that belong to the result."""
    network = config.network
    if network.alpha > network.dim and effective.network_scale(config) > 1:
        yield Warned(
            say("Alpha is larger than rank: the network counts {scale} times.", scale=round(effective.network_scale(config), 3)),
            "network.alpha",
        )
    for option, found in pattern_hits(config, facts).items():
        for pattern in (pattern for pattern, count in found.items() if not count):
            yield Warned(say("The pattern {pattern} hits no layer.", pattern=pattern), f"network.{option}")
    if network.base_weights:
        names = ", ".join(Path(file).name for file in network.base_weights)
        yield Warned(
            say(
                "What is learned comes on top of {files}: use them together. Previews that the WebUI draws show it without them.",
                files=names,
            ),
            "network.base_weights",
        )


def _of_the_model(config: TrainConfig, facts: ModelFacts | None) -> Iterator[Warned]:
    """What the model's file tells that matters for these settings; without one, what is true of most models."""
    prediction, zero = (facts.prediction, facts.zero_terminal_snr) if facts is not None else ("epsilon", False)
    for path, message in of_loss(config.loss, prediction=prediction, zero_terminal_snr=zero):
        yield Warned(message, path)
    if facts is None:
        return
    for note in facts.notes:
        yield Warned(note, "model.pretrained_model_name_or_path")
    (width, height), native = training_size(config.data), facts.native_size
    if width * height < native * native * FAR_BELOW:
        template = "The pictures are trained at {width} x {height}, and the model was made for {native} x {native}: what it draws suffers."
        yield Warned(say(template, width=width, height=height, native=native), "data.resolution")
    if config.model.clip_skip > 1 and not family(facts.family).reads_clip_skip:
        label = layout.row(facts.family).label
        yield Warned(say("{label} always reads the same layer of its text: clip skip changes nothing.", label=label), "model.clip_skip")


Doubt = tuple[str, Message]


def of_loss(loss: LossConfig, *, prediction: str = "epsilon", zero_terminal_snr: bool = False) -> Iterator[Doubt]:
    """(the option, what is wrong with it). `prediction` ("epsilon" or "v") and `zero_terminal_snr` are facts of the model."""
    yield from _without_effect(loss)
    yield from _twice(loss)
    yield from _of_the_other_prediction(loss, prediction)
    if zero_terminal_snr:
        yield from _without_any_signal(loss, prediction)


def of_validation(validate: ValidateConfig, held: int) -> Iterator[Doubt]:
    """The same for validation, with the number of pictures that are held back."""
    path = "validate.early_stop_patience"
    if validate.early_stop_patience and not held:
        yield path, say("The run cannot end early: no pictures are held back for validation.")
    elif validate.early_stop_patience and not validate.every_n_steps and validate.every_n_epochs == 0:
        yield path, say("The run cannot end early: pictures are only validated before it and at its end.")


def _without_effect(loss: LossConfig) -> Iterator[Doubt]:
    """Options that were changed although what they belong to is off."""
    for option in declared(LossConfig, "loss."):
        name = option.path.rpartition(".")[2]
        if getattr(loss, name) == option.default:
            continue
        need = next((need for need in option.option.when if not _holds(loss, need)), None)
        if need is not None and need.values:
            value = getattr(loss, need.path.rpartition(".")[2])
            yield option.path, say("{option} has no effect while {other} is {value}.", option=option.path, other=need.path, value=value)
        elif need is not None:
            yield option.path, say("{option} has no effect while {other} is off.", option=option.path, other=need.path)


def _holds(loss: LossConfig, need: Condition) -> bool:
    value = getattr(loss, need.path.rpartition(".")[2])
    return value in need.values if need.values else bool(value)


def _twice(loss: LossConfig) -> Iterator[Doubt]:
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


def _of_the_other_prediction(loss: LossConfig, prediction: str) -> Iterator[Doubt]:
    if loss.scale_v_pred_loss_like_noise_pred and prediction != "v":
        path = "loss.scale_v_pred_loss_like_noise_pred"
        yield path, say("{option} is left out: this model predicts the noise, not v.", option=path)
    if loss.v_pred_like_loss and prediction == "v":
        path = "loss.v_pred_like_loss"
        yield path, say("{option} is left out: this model predicts v already.", option=path)


def _without_any_signal(loss: LossConfig, prediction: str) -> Iterator[Doubt]:
    """At the last step of such a model there is noise alone: the mean of a picture is learned there, and epsilon's weights are endless."""
    for name in ("noise_offset", "multires_noise_iterations"):
        if getattr(loss, name):
            path = f"loss.{name}"
            yield path, say("{option} is not needed: this model has zero terminal SNR and draws dark and bright by itself.", option=path)
    if prediction != "v" and (loss.min_snr_gamma or loss.debiased_estimation_loss):
        path = "loss.min_snr_gamma" if loss.min_snr_gamma else "loss.debiased_estimation_loss"
        yield path, say("{option} divides by a signal of 0 at the last step of this model: set loss.max_timestep = 999.", option=path)
