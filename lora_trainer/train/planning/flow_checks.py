"""What does not go together with a model of rectified flow: found by `check` and the tab, and again when the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from lora_trainer.config.checks.option_checks import problem
from lora_trainer.config.choices.samplers import CHOICES, FLOW_SAMPLERS
from lora_trainer.config.schema import LossConfig, TrainConfig
from lora_trainer.config.schema.loss import SNR_WEIGHTS
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.models.prediction_kinds import FLOW
from lora_trainer.train.previews.preview_prompts import Prompts


def require_fitting_options(config: TrainConfig, prediction: str, prompts: Prompts) -> None:
    """Raises ConfigError with every option that a model of this prediction type ("flow") cannot be trained or drawn with."""
    if prediction == FLOW and (problems := [*_loss_problems(config.loss), *_sampler_problems(config.sample.sampler, prompts)]):
        raise ConfigError(problems)


def _loss_problems(loss: LossConfig) -> Iterator[Problem]:
    for name in SNR_WEIGHTS:
        if getattr(loss, name):
            yield problem(
                f"loss.{name}",
                "{option} is made for models that predict the noise or v, and the model is one of rectified flow.",
                "Set it to {off}: which noise counts more is chosen by loss.timestep_sampling and loss.discrete_flow_shift.",
                option=f"loss.{name}",
                off="false" if getattr(loss, name) is True else "0",
            )


def _sampler_problems(default: str, prompts: Prompts) -> Iterator[Problem]:
    """One for each sampler of the previews that does not draw with such a model."""
    wrong = {request.sampler: index for index, request in reversed(prompts.requests) if request.sampler not in FLOW_SAMPLERS}
    for sampler, index in wrong.items():
        yield problem(
            "sample.sampler" if sampler == default else "sample.prompts",
            "prompt {number} is to be drawn with the sampler {name}, which does not draw with models of rectified flow.",
            "Choose one of these: {known}.",
            number=index + 1,
            name=CHOICES[sampler],
            known=", ".join(CHOICES[name] for name in FLOW_SAMPLERS),
        )
