"""Validation loss: pictures that are never trained on, ten fixed timesteps, noise that never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_trainer.config.schema import LossConfig
from lora_trainer.control import Control
from lora_trainer.data.records import ImageRecord
from lora_trainer.events import Event, Phase, Validated
from lora_trainer.loss.noise import generator_for
from lora_trainer.messages import Message, say
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.train.inputs.examples import CaptionSampler
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.step.objective import Batch, per_image_losses
from lora_trainer.train.step.precision import Precision, compute_scope

if TYPE_CHECKING:
    from lora_trainer.train.trainer import Trainer


TIMESTEPS = tuple(range(50, 1000, 100))
PLAIN = LossConfig()


class Validation:
    """Looks at the pictures of one run that are held back."""

    def __init__(self, trainer: Trainer, course: TrainingProgress, words: CaptionSampler, control: Control) -> None:
        self.trainer, self.course, self.words, self.control = trainer, course, words, control
        rules = trainer.config.validate
        self.held = chosen(trainer.dataset.held, rules.max_pictures)
        course.early.patience, course.early.min_delta = rules.early_stop_patience, rules.early_stop_min_delta

    def look(self) -> Iterator[Event]:
        """Measures with the weights as they are; nothing when there is no such picture, or it was done at this step already."""
        trainer, course, held = self.trainer, self.course, self.held
        if not held or course.validated_at == course.step:
            return
        yield Phase("validating", len(held))
        captions = trainer.caption_encoder
        captions.fill(trainer.bundle, captions.missing(map(self.words.validation_caption, held)))
        with trainer.ema_weights():
            loss = validation_loss(
                trainer.bundle,
                [trainer.latent(record, False) for record in held],
                [record.key for record in held],
                lambda number: trainer.conditioning_for(held[number], self.words.validation_caption(held[number])),
                trainer.precision,
                lambda: not self.control.stopping,
            )
        if loss is not None:
            course.validated_at = course.step
            yield Validated(course.step, course.epoch, loss, course.early.after(course.step, course.epoch, loss))

    def why_early(self) -> Message:
        """Why the run ends before its plan does."""
        early = self.course.early
        if early.in_vain or early.lowest is None:
            return say(
                "The run ends early: no validation loss since the beginning is lower than that before training ({first}). "
                "Use a lower learning rate, or other pictures for validation.",
                first=_shown(early.first),
            )
        return say(
            "The run ends early: the validation loss has not fallen for {count} validations. It is lowest at step {step}, epoch {epoch}.",
            count=early.waited,
            step=early.step,
            epoch=early.epoch,
        )


def chosen(held: Sequence[ImageRecord], most: int) -> tuple[ImageRecord, ...]:
    """At most so many of the pictures (0: all), the same ones each time, whatever others there are."""
    if not most or len(held) <= most:
        return tuple(held)
    ranked = sorted(held, key=lambda record: hashlib.blake2b(record.key.encode("utf-8")).digest())
    kept = {record.key for record in ranked[:most]}
    return tuple(record for record in held if record.key in kept)


def _shown(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.4f}"


def validation_loss(
    bundle: ModelBundle,
    latents: Sequence[Tensor],
    keys: Sequence[str],
    conditioning: Callable[[int], Conditioning],
    precision: Precision,
    keep_going: Callable[[], bool] = lambda: True,
) -> float | None:
    """Mean squared error over pictures and t = 50, 150 .. 950, weight 1. None when `keep_going` turned False.

    `conditioning(i)` is what is told with picture i. Noise depends on the picture's key and t only: runs compare.
    """
    total = 0.0
    for number, (latent, key) in enumerate(zip(latents, keys, strict=False)):
        if not keep_going():
            return None
        noise = [torch.randn(latent.shape, generator=generator_for("validation", key, t)) for t in TIMESTEPS]
        count = len(TIMESTEPS)
        with compute_scope(precision, bundle.device, grad=False):
            told = conditioning(number).repeated(count)
            batch = Batch(
                latent.unsqueeze(0).expand(count, *latent.shape).to(bundle.device),
                torch.stack(noise).to(bundle.device),
                torch.tensor(TIMESTEPS, device=bundle.device),
                told.states,
                pooled=told.pooled,
                sizes=told.sizes,
            )
            total += float(per_image_losses(bundle, batch, PLAIN).mean())
    return total / len(latents)
