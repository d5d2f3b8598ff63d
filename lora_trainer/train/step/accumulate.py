"""One optimizer step: forward and backward of its batches, one after the other, then the update of the parameters."""

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
from lora_trainer.loss.objectives import objective_for
from lora_trainer.messages import Message, say
from lora_trainer.train.distributed import SingleProcess
from lora_trainer.train.inputs.examples import CaptionSampler, is_flipped
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.step.cuda_graphs import CudaGraphs, CudaRecorder, Work, why_not
from lora_trainer.train.step.objective import Batch, apply_prior_weight, make_batch, per_image_losses
from lora_trainer.train.step.precision import compute_scope

if TYPE_CHECKING:
    from lora_trainer.optim.optimizers import TrainingOptimizer
    from lora_trainer.train.outputs.ema import EmaWeights
    from lora_trainer.train.trainer import Trainer


class GradientAccumulator:
    """Accumulates the gradients of a step's batches in the optimizer's buffers.

    Everything random is drawn from (seed, epoch, picture, repeat), so that a step that failed half-way can be repeated, with the same
    numbers, after `trainer.optimizer.zero_grad()`.
    """

    def __init__(self, trainer: Trainer, progress: TrainingProgress, captions: CaptionSampler, group: SingleProcess) -> None:
        self.trainer, self.progress, self.captions, self.group = trainer, progress, captions, group
        self._messages: list[Message] = []
        self._micro_batch_count = 0
        cuda_graphs = make_cuda_graphs(trainer, self._backward_of_tensors)
        if isinstance(cuda_graphs, Message):
            self._messages.append(cuda_graphs)
        else:
            trainer.cuda_graphs = cuda_graphs

    def accumulate(self, batches: Sequence[Sequence[Item]]) -> Tensor:
        """Mean loss of the step's pictures (scalar, detached, on the device); its gradient is added to the optimizer's buffers.

        Each of several processes computes the part of its shard of both.
        """
        try:
            return self._accumulate(batches)
        except (RuntimeError, ImportError, OSError) as error:
            if self.trainer.compiled is None or not self.trainer.compiled.fall_back(error):
                raise
        self.trainer.optimizer.zero_grad()
        return self._accumulate(batches)

    def _accumulate(self, batches: Sequence[Sequence[Item]]) -> Tensor:
        trainer, pictures, self._micro_batch_count = self.trainer, sum(len(batch) for batch in batches), 0
        total = torch.zeros((), device=trainer.bundle.device)
        for batch in map(self.group.shard, batches):
            if not batch:
                continue
            for micro_batch in self._micro_batches(batch):
                self._micro_batch_count += 1
                total += self._backward(micro_batch, pictures)
        return total

    def warnings(self) -> Iterator[Event]:
        """Warnings of CUDA graphs and compiling, each once."""
        for messages in (
            self._messages,
            *(part.messages for part in (self.trainer.cuda_graphs, self.trainer.compiled) if part is not None),
        ):
            yield from map(Warned, messages)
            messages.clear()

    def _micro_batches(self, batch: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """A batch in pieces of at most memory.pictures_at_once pictures."""
        micro_batch_size = self.trainer.config.memory.pictures_at_once or len(batch)
        return (batch[start : start + micro_batch_size] for start in range(0, len(batch), micro_batch_size))

    def _backward(self, micro_batch: Sequence[Item], pictures: int) -> Tensor:
        """Loss of a micro-batch as its part of the mean over the step's `pictures` (scalar, detached); accumulates its gradient."""
        trainer = self.trainer
        if trainer.cuda_graphs is not None:
            batch, is_reg = self._make_batch(micro_batch)
            weights = apply_prior_weight(
                torch.ones(len(micro_batch), device=trainer.bundle.device), is_reg, trainer.config.loss.prior_loss_weight
            )
            step_pictures = torch.full((), float(pictures), device=trainer.bundle.device)
            if (graph_loss := trainer.cuda_graphs((*attrs.astuple(batch, recurse=False), weights, step_pictures))) is not None:
                return graph_loss
        with trainer.adapter.using_tensors(trainer.optimizer.tensors(trainer.precision.autocast), self._layer_rng()):
            batch, is_reg = self._make_batch(micro_batch)
            with self._compute_scope():
                losses = per_image_losses(trainer.bundle, batch, trainer.loss_config)
                loss = apply_prior_weight(losses, is_reg, trainer.config.loss.prior_loss_weight).sum() / pictures
            (loss if trainer.scaler is None else trainer.scaler.scale(loss)).backward()
        return loss.detach()

    def _backward_of_tensors(self, *inputs: Tensor) -> Tensor:
        """The same from tensors alone, as a CUDA graph needs it: the fields of a Batch, each picture's weight, the pictures of the step."""
        trainer, (*batch, weights, pictures) = self.trainer, inputs
        with trainer.adapter.using_tensors(trainer.optimizer.tensors(trainer.precision.autocast)):
            with self._compute_scope():
                loss = (per_image_losses(trainer.bundle, Batch(*batch), trainer.loss_config) * weights).sum() / pictures
            (loss if trainer.scaler is None else trainer.scaler.scale(loss)).backward()
        return loss.detach()

    def _layer_rng(self) -> LayerRng | None:
        """The random numbers of the adapter's layers in this micro-batch; None where it uses none."""
        trainer = self.trainer
        return LayerRng(trainer.config.seed, self.progress.step, self._micro_batch_count) if trainer.adapter.is_random else None

    def _compute_scope(self) -> AbstractContextManager[None]:
        return compute_scope(self.trainer.precision, self.trainer.bundle.device, grad=True)

    def _make_batch(self, items: Sequence[Item]) -> tuple[Batch, list[bool]]:
        """The tensors of these pictures, and which of them are regularisation pictures."""
        trainer, dataset, seed, epoch = self.trainer, self.trainer.dataset, self.trainer.config.seed, self.progress.epoch
        records = [dataset.train_records[item.index] for item in items]
        keys = [(seed, epoch, record.key, item.repeat) for record, item in zip(records, items, strict=True)]
        flips = [is_flipped(dataset, record, key) for record, key in zip(records, keys, strict=True)]
        views = [(record, flipped, item.repeat) for record, flipped, item in zip(records, flips, items, strict=True)]
        latents_and_masks = [trainer.views.latents(record, flipped, epoch=epoch, repeat=repeat) for record, flipped, repeat in views]
        sizes: list[tuple[int, ...]] = []
        if trainer.bundle.family.uses_sizes:
            sizes = [trainer.views.sizes(record, flipped, epoch=epoch, repeat=repeat) for record, flipped, repeat in views]
        captions = [self.captions.caption_at(item, self.progress.step) for item in items]
        with self._compute_scope():
            tensors = make_batch(
                [latent for latent, _ in latents_and_masks],
                keys,
                lambda: trainer.caption_encoder.encode(trainer.bundle, captions),
                trainer.loss_config,
                trainer.bundle.device,
                [mask for _, mask in latents_and_masks],
                sizes,
                objective_for(trainer.bundle.prediction, trainer.bundle.alphas_cumprod).draw,
            )
        return tensors, [record.is_reg for record in records]


def make_cuda_graphs(trainer: Trainer, work: Work) -> CudaGraphs | Message | None:
    """CUDA graphs of `work` for this run; a message where they are wanted and impossible; None where they are not wanted."""
    config = trainer.config
    if not config.memory.cuda_graphs:
        return None
    reason = why_not(
        device=trainer.device,
        trains_text=trainer.caption_encoder.is_trained,
        compiles=config.memory.compile,
        is_random=trainer.adapter.is_random,
    )
    if reason is not None:
        return say("CUDA graphs are not used: {reason}", reason=reason)
    return CudaGraphs(work, [group.buffer for group in trainer.optimizer.groups], CudaRecorder(trainer.device))


class OptimizerStep:
    """Unscales and clips the gradient, then steps the optimizer; a gradient that is not finite is dropped instead.

    `after_step` is called after each step that was taken, before the EMA is updated.
    """

    def __init__(
        self, optimizer: TrainingOptimizer, scaler: Any, ema: EmaWeights | None = None, after_step: Callable[[], object] | None = None
    ) -> None:
        self.optimizer, self.scaler, self.ema, self.after_step = optimizer, scaler, ema, after_step
        self.is_irreversible = False
        """Whether the optimizer has stepped in an update that has not ended: the step cannot be repeated."""
        self._has_stepped = False

    def update(self, rate_factor: float, max_grad_norm: float, loss: Tensor, step: int = 1) -> tuple[float, float]:
        """Optimizer step number `step` (1 is the first), at `rate_factor` times each group's learning rate.

        Returns the gradient's norm before it was clipped to `max_grad_norm` (0: no clipping), and the loss as a float. Both are read
        at once: this is the only synchronisation with a GPU in a step.
        """
        optimizer, scaler = self.optimizer, self.scaler
        if scaler is not None:
            optimizer.unscale(scaler)
        grad_norm, loss_value = self._clip_gradient(max_grad_norm, loss)
        if grad_norm == grad_norm and grad_norm != float("inf"):
            self._step(rate_factor)
            if self.after_step is not None:
                self.after_step()
        else:
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        if self.ema is not None:
            self.ema.update(step)
        self.is_irreversible = False
        return grad_norm, loss_value

    def _step(self, rate_factor: float) -> None:
        """The first step allocates the optimizer's state: when memory runs out there, everything is restored as it was before."""
        if self._has_stepped:
            self.is_irreversible = True
            self.optimizer.step(rate_factor)
            return
        values, optimizer_state = [group.buffer.detach().clone() for group in self.optimizer.groups], self.optimizer.state_dict()
        try:
            self.optimizer.step(rate_factor)
        except (RuntimeError, MemoryError):
            if not optimizer_state[0]:  # at the begin of a run: what the failed step has allocated must not stay
                self.optimizer.inner.state.clear()
            self.optimizer.load_state_dict(*optimizer_state)
            with torch.no_grad():
                for group, value in zip(self.optimizer.groups, values, strict=True):
                    group.buffer.copy_(value)
            raise
        self.is_irreversible = self._has_stepped = True

    @property
    def loss_scale(self) -> float:
        """The scale of the GradScaler; 0 without one."""
        return 0.0 if self.scaler is None else float(self.scaler.get_scale())

    def _clip_gradient(self, max_grad_norm: float, loss: Tensor) -> tuple[float, float]:
        gradients = self.optimizer.gradients()
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        total_norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        norm, loss_value = torch.stack([total_norm, loss.to(total_norm.dtype)]).tolist()
        if max_grad_norm and norm > max_grad_norm:
            for gradient in gradients:
                gradient.mul_(max_grad_norm / (norm + 1e-6))
        return norm, loss_value
