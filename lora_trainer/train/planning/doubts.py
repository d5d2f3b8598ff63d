"""Options of loss and validation that make no sense together, named before the first step (no torch)."""

from __future__ import annotations

from collections.abc import Iterator

from lora_trainer.config.param import Condition, declared
from lora_trainer.config.schema import LossConfig, ValidateConfig
from lora_trainer.messages import Message, say

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
