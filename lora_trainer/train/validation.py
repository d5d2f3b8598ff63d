"""Validation loss: mean squared error on pictures that are not trained on, with ten fixed timesteps and fixed noise."""

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
PLAIN_LOSS = LossConfig()


class Validation:
    """Validates one run on its validation pictures, and ends it early where the loss no longer falls."""

    def __init__(self, trainer: Trainer, progress: TrainingProgress, captions: CaptionSampler, control: Control) -> None:
        self.trainer, self.progress, self.captions, self.control = trainer, progress, captions, control
        rules = trainer.config.validate
        self.records = choose_records(trainer.dataset.validation_records, rules.max_pictures)
        progress.early_stop.patience, progress.early_stop.min_delta = rules.early_stop_patience, rules.early_stop_min_delta

    def run(self) -> Iterator[Event]:
        """Validates the current weights; does nothing without validation pictures, or when this step has been validated already."""
        trainer, progress, records = self.trainer, self.progress, self.records
        if not records or progress.validated_at == progress.step:
            return
        yield Phase("validating", len(records))
        encoder = trainer.caption_encoder
        encoder.fill(trainer.bundle, encoder.missing(map(self.captions.validation_caption, records)))
        with trainer.ema_weights():
            loss = validation_loss(
                trainer.bundle,
                [trainer.latent(record, False) for record in records],
                [record.key for record in records],
                lambda number: trainer.conditioning_for(records[number], self.captions.validation_caption(records[number])),
                trainer.precision,
                lambda: not self.control.stopping,
            )
        if loss is not None:
            progress.validated_at = progress.step
            yield Validated(progress.step, progress.epoch, loss, progress.early_stop.update(progress.step, progress.epoch, loss))

    def early_stop_reason(self) -> Message:
        """Why the run ends early."""
        early = self.progress.early_stop
        if early.never_improved or early.best_loss is None:
            return say(
                "The run ends early: no validation loss since the beginning is lower than that before training ({first}). "
                "Use a lower learning rate, or other pictures for validation.",
                first=_format_loss(early.initial_loss),
            )
        return say(
            "The run ends early: the validation loss has not fallen for {count} validations. It is lowest at step {step}, epoch {epoch}.",
            count=early.wait_count,
            step=early.best_step,
            epoch=early.best_epoch,
        )


def choose_records(records: Sequence[ImageRecord], limit: int) -> tuple[ImageRecord, ...]:
    """At most `limit` of the pictures (0: all), chosen by hash, so that adding pictures keeps most of the choice."""
    if not limit or len(records) <= limit:
        return tuple(records)
    ranked = sorted(records, key=lambda record: hashlib.blake2b(record.key.encode("utf-8")).digest())
    chosen = {record.key for record in ranked[:limit]}
    return tuple(record for record in records if record.key in chosen)


def _format_loss(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.4f}"


def validation_loss(
    bundle: ModelBundle,
    latents: Sequence[Tensor],
    keys: Sequence[str],
    conditioning: Callable[[int], Conditioning],
    precision: Precision,
    keep_going: Callable[[], bool] = lambda: True,
) -> float | None:
    """Mean squared error over pictures and t = 50, 150 .. 950, unweighted. None when `keep_going` returns False.

    `latents` [channels, h, w] each; `conditioning(i)` is that of picture i. Noise depends on the picture's key and t only, so that runs
    can be compared.
    """
    total = 0.0
    for number, (latent, key) in enumerate(zip(latents, keys, strict=False)):
        if not keep_going():
            return None
        noise = [torch.randn(latent.shape, generator=generator_for("validation", key, t)) for t in TIMESTEPS]
        count = len(TIMESTEPS)
        with compute_scope(precision, bundle.device, grad=False):
            repeated = conditioning(number).expand(count)
            batch = Batch(
                latent.unsqueeze(0).expand(count, *latent.shape).to(bundle.device),
                torch.stack(noise).to(bundle.device),
                torch.tensor(TIMESTEPS, device=bundle.device),
                repeated.states,
                pooled=repeated.pooled,
                sizes=repeated.sizes,
            )
            total += float(per_image_losses(bundle, batch, PLAIN_LOSS).mean())
    return total / len(latents)
