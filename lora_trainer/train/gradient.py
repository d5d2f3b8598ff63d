"""The gradient of one optimizer step: its batches one after the other, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_trainer.data.order import Item
from lora_trainer.train.course import Course
from lora_trainer.train.runtime import computing
from lora_trainer.train.shares import Shares
from lora_trainer.train.showing import mirrored
from lora_trainer.train.step import noisy_batch, picture_losses, weighted
from lora_trainer.train.wording import Wording

if TYPE_CHECKING:
    from lora_trainer.train.setup import Trainer


class Gradient:
    """Adds up the gradients of a group of batches in the optimizer's buffers.

    Everything random is drawn from (seed, epoch, picture, repeat), so that a group that failed half-way can be done again, with the
    same bits, after `trainer.optimizer.drop()`.
    """

    def __init__(self, trainer: Trainer, course: Course, words: Wording, shares: Shares) -> None:
        self.trainer, self.course, self.words, self.shares = trainer, course, words, shares

    def add_up(self, group: Sequence[Sequence[Item]]) -> Tensor:
        """Mean loss of the group's pictures, detached and on the device; its gradient lies in the optimizer's buffers.

        Of several processes each adds up its own part of both.
        """
        trainer, pictures = self.trainer, sum(len(batch) for batch in group)
        total = torch.zeros((), device=trainer.bundle.device)
        for batch in map(self.shares.of, group):
            if not batch:
                continue
            with trainer.adapter.calculating_with(trainer.optimizer.tensors(trainer.precision.autocast)):
                loss = self._batch_loss(batch) / pictures
                (loss if trainer.scaler is None else trainer.scaler.scale(loss)).backward()
            total += loss.detach()
        return total

    def _batch_loss(self, batch: Sequence[Item]) -> Tensor:
        trainer, pictures, seed, epoch = self.trainer, self.trainer.pictures, self.trainer.config.seed, self.course.epoch
        records = [pictures.trained[item.index] for item in batch]
        keys = [(seed, epoch, record.key, item.repeat) for record, item in zip(records, batch, strict=True)]
        flips = [mirrored(pictures, record, key) for record, key in zip(records, keys, strict=True)]
        seen = [
            trainer.views.seen(record, flipped, epoch=epoch, repeat=item.repeat)
            for record, flipped, item in zip(records, flips, batch, strict=True)
        ]
        texts = [self.words.of(item, self.course.step) for item in batch]
        with computing(trainer.precision, trainer.bundle.device, grad=True):
            drawn = noisy_batch(
                [latent for latent, _ in seen],
                keys,
                lambda: trainer.captions.encode(trainer.bundle, texts),
                trainer.rules,
                trainer.bundle.device,
                [mask for _, mask in seen],
            )
            losses = picture_losses(trainer.bundle, drawn, trainer.rules)
            return weighted(losses, [record.is_reg for record in records], trainer.config.loss.prior_loss_weight).sum()
