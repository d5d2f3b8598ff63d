"""One optimizer step: its batches forward and backward one after the other, then the update from the gradient in the buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.rng import LayerRng
from lora_trainer.data.batch_sampler import Item
from lora_trainer.events import Event, Warned
from lora_trainer.messages import Message, say
from lora_trainer.train.distributed import SingleProcess
from lora_trainer.train.inputs.examples import CaptionSampler, mirrored
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.step.cuda_graphs import CudaGraphs, CudaRecorder, Work, why_not
from lora_trainer.train.step.objective import Batch, make_batch, mean_loss, per_image_losses
from lora_trainer.train.step.precision import compute_scope

if TYPE_CHECKING:
    from lora_trainer.optim.optimizers import TrainingOptimizer
    from lora_trainer.train.outputs.ema import EmaWeights
    from lora_trainer.train.trainer import Trainer


class GradientAccumulator:
    """Adds up the gradients of a group of batches in the optimizer's buffers.

    Everything random is drawn from (seed, epoch, picture, repeat), so that a group that failed half-way can be done again, with the
    same bits, after `trainer.optimizer.drop()`.
    """

    def __init__(self, trainer: Trainer, course: TrainingProgress, words: CaptionSampler, shares: SingleProcess) -> None:
        self.trainer, self.course, self.words, self.shares = trainer, course, words, shares
        self._told: list[Message] = []
        self._done = 0
        replays = replays_for(trainer, self._of_tensors)
        if isinstance(replays, Message):
            self._told.append(replays)
        else:
            trainer.cuda_graphs = replays

    def accumulate(self, group: Sequence[Sequence[Item]]) -> Tensor:
        """Mean loss of the group's pictures, detached and on the device; its gradient lies in the optimizer's buffers.

        Of several processes each adds up its own part of both.
        """
        try:
            return self._added_up(group)
        except (RuntimeError, ImportError, OSError) as error:
            if self.trainer.compiled is None or not self.trainer.compiled.gives_up(error):
                raise
        self.trainer.optimizer.drop()
        return self._added_up(group)

    def _added_up(self, group: Sequence[Sequence[Item]]) -> Tensor:
        trainer, pictures, self._done = self.trainer, sum(len(batch) for batch in group), 0
        total = torch.zeros((), device=trainer.bundle.device)
        for batch in map(self.shares.shard, group):
            if not batch:
                continue
            for piece in self._pieces(batch):
                self._done += 1
                total += self._of_piece(piece, pictures)
        return total

    def warnings(self) -> Iterator[Event]:
        """What is to be told of recording and compiling, each once."""
        for told in (self._told, *(part.told for part in (self.trainer.cuda_graphs, self.trainer.compiled) if part is not None)):
            yield from map(Warned, told)
            told.clear()

    def _pieces(self, batch: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """A batch, cut where memory has no room for all of its pictures at once."""
        most = self.trainer.config.memory.pictures_at_once or len(batch)
        return (batch[start : start + most] for start in range(0, len(batch), most))

    def _of_piece(self, piece: Sequence[Item], pictures: int) -> Tensor:
        """Loss of some of a step's `pictures`, detached; its gradient is added up."""
        trainer = self.trainer
        if trainer.cuda_graphs is not None:
            drawn, is_reg = self._drawn(piece)
            counts = mean_loss(torch.ones(len(piece), device=trainer.bundle.device), is_reg, trainer.config.loss.prior_loss_weight)
            whole = torch.full((), float(pictures), device=trainer.bundle.device)
            if (replayed := trainer.cuda_graphs((*attrs.astuple(drawn, recurse=False), counts, whole))) is not None:
                return replayed
        with trainer.adapter.using_tensors(trainer.optimizer.tensors(trainer.precision.autocast), self._chance()):
            drawn, is_reg = self._drawn(piece)
            with self._computing():
                losses = per_image_losses(trainer.bundle, drawn, trainer.loss_config)
                loss = mean_loss(losses, is_reg, trainer.config.loss.prior_loss_weight).sum() / pictures
            (loss if trainer.scaler is None else trainer.scaler.scale(loss)).backward()
        return loss.detach()

    def _of_tensors(self, *inputs: Tensor) -> Tensor:
        """The same from tensors alone, as a graph holds it: those of a Batch, what each picture counts, how many the step has."""
        trainer, (*batch, counts, pictures) = self.trainer, inputs
        with trainer.adapter.using_tensors(trainer.optimizer.tensors(trainer.precision.autocast)):
            with self._computing():
                loss = (per_image_losses(trainer.bundle, Batch(*batch), trainer.loss_config) * counts).sum() / pictures
            (loss if trainer.scaler is None else trainer.scaler.scale(loss)).backward()
        return loss.detach()

    def _chance(self) -> LayerRng | None:
        """What the network draws at random in this piece of a step; None where it draws nothing."""
        trainer = self.trainer
        return LayerRng(trainer.config.seed, self.course.step, self._done) if trainer.adapter.is_random else None

    def _computing(self) -> AbstractContextManager[None]:
        return compute_scope(self.trainer.precision, self.trainer.bundle.device, grad=True)

    def _drawn(self, batch: Sequence[Item]) -> tuple[Batch, list[bool]]:
        """What the step sees of these pictures, and which of them are of regularisation."""
        trainer, pictures, seed, epoch = self.trainer, self.trainer.dataset, self.trainer.config.seed, self.course.epoch
        records = [pictures.trained[item.index] for item in batch]
        keys = [(seed, epoch, record.key, item.repeat) for record, item in zip(records, batch, strict=True)]
        flips = [mirrored(pictures, record, key) for record, key in zip(records, keys, strict=True)]
        shown = [(record, flipped, item.repeat) for record, flipped, item in zip(records, flips, batch, strict=True)]
        seen = [trainer.views.latents(record, flipped, epoch=epoch, repeat=repeat) for record, flipped, repeat in shown]
        sizes: list[tuple[int, ...]] = []
        if trainer.bundle.family.reads_sizes:
            sizes = [trainer.views.sizes(record, flipped, epoch=epoch, repeat=repeat) for record, flipped, repeat in shown]
        texts = [self.words.caption_at(item, self.course.step) for item in batch]
        with self._computing():
            drawn = make_batch(
                [latent for latent, _ in seen],
                keys,
                lambda: trainer.caption_encoder.encode(trainer.bundle, texts),
                trainer.loss_config,
                trainer.bundle.device,
                [mask for _, mask in seen],
                sizes,
            )
        return drawn, [record.is_reg for record in records]


def replays_for(trainer: Trainer, work: Work) -> CudaGraphs | Message | None:
    """What replays `work` in this run; the reason where that was asked for and cannot be; None where it was not asked for."""
    config = trainer.config
    if not config.memory.cuda_graphs:
        return None
    reason = why_not(
        device=trainer.device, text_encoder=trainer.caption_encoder.trained, compiled=config.memory.compile, draws=trainer.adapter.is_random
    )
    if reason is not None:
        return say("Steps are not replayed: {reason}", reason=reason)
    return CudaGraphs(work, [group.buffer for group in trainer.optimizer.groups], CudaRecorder())


class OptimizerStep:
    """Unscales, measures and shortens the gradient, then steps; a gradient that is no number is dropped instead.

    `after` is done after each step that was taken, before the average follows.
    """

    def __init__(
        self, optimizer: TrainingOptimizer, scaler: Any, average: EmaWeights | None = None, after: Callable[[], object] | None = None
    ) -> None:
        self.optimizer, self.scaler, self.average, self.after = optimizer, scaler, average, after
        self.begun = False
        """Whether a step has begun and not ended: it cannot be done again."""
        self._stepped = False

    def update(self, factor: float, limit: float, loss: Tensor, steps: int = 1) -> tuple[float, float]:
        """The `steps`-th step, at `factor` times each group's rate.

        Returns the gradient's length before it was shortened to `limit` (0: never), and the loss as a number. Both are read at once:
        it is the only time in a step that a GPU is waited for.
        """
        optimizer, scaler = self.optimizer, self.scaler
        if scaler is not None:
            optimizer.unscale(scaler)
        norm, read = self._shortened(limit, loss)
        if norm == norm and norm != float("inf"):
            self._step(factor)
            if self.after is not None:
                self.after()
        else:
            optimizer.drop()
        if scaler is not None:
            scaler.update()
        if self.average is not None:
            self.average.update(steps)
        self.begun = False
        return norm, read

    def _step(self, factor: float) -> None:
        """The first step makes the optimizer's state, for which there may be no room: then all is as before it."""
        if self._stepped:
            self.begun = True
            self.optimizer.step(factor)
            return
        values, kept = [group.buffer.detach().clone() for group in self.optimizer.groups], self.optimizer.state_dict()
        try:
            self.optimizer.step(factor)
        except (RuntimeError, MemoryError):
            if not kept[0]:  # of a run that begins: what the step has made must not stay
                self.optimizer.inner.state.clear()
            self.optimizer.load_state_dict(*kept)
            with torch.no_grad():
                for group, before in zip(self.optimizer.groups, values, strict=True):
                    group.buffer.copy_(before)
            raise
        self.begun = self._stepped = True

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with; 0 without a GradScaler."""
        return 0.0 if self.scaler is None else float(self.scaler.get_scale())

    def _shortened(self, limit: float, loss: Tensor) -> tuple[float, float]:
        gradients = self.optimizer.gradients()
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        length = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        norm, read = torch.stack([length, loss.to(length.dtype)]).tolist()
        if limit and norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return norm, read
