"""What the user should know before the first step: of pictures, captions, settings and the model's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_trainer import assets
from lora_trainer.config import effective
from lora_trainer.config.checks.learning_rate_checks import rate_notes
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import caption_notes
from lora_trainer.data.sources.blueprint import training_size
from lora_trainer.events import Warned
from lora_trainer.messages import say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.models.families import family
from lora_trainer.train.inputs.dataset import Pictures
from lora_trainer.train.planning import doubts
from lora_trainer.train.planning.network_plan import pattern_hits
from lora_trainer.train.setup import facts_of, prompts_of

FAR_BELOW = 0.4
"""Share of a model's own area below which its pictures fall apart: it was never shown such sizes."""


def early_warnings(config: TrainConfig, pictures: Pictures, checkpoint: Path) -> list[Warned]:
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
    found += [Warned(message, path) for path, message in doubts.of_validation(config.validate, len(pictures.held))]
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
    for path, message in doubts.of_loss(config.loss, prediction=prediction, zero_terminal_snr=zero):
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
