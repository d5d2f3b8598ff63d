"""When memory runs out: the work is done again with less, one setting after the other, until nothing is left to try."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch

from lora_trainer.config import effective
from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.errors import OutOfMemory
from lora_trainer.events import Changed, Event, Warned
from lora_trainer.host.memory import empty
from lora_trainer.messages import Message, say
from lora_trainer.train.memory import checkpointing

if TYPE_CHECKING:
    from lora_trainer.train.progress import TrainingProgress
    from lora_trainer.train.trainer import Trainer


STEP, ENCODING, LOOKING, LOADING = "step", "encoding", "looking", "loading"
"""What may run out of memory: a training step; encoding of pictures and captions; validation, previews and saving; the model's loading."""
SMALLEST = 256
"""Below this side a smaller training size is no remedy."""
WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
Made = TypeVar("Made")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed: torch's own, Python's, and those of kernels that only say it in words."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def free_cache(device: torch.device) -> None:
    """Frees what nobody needs any more, down to the driver."""
    gc.collect()
    empty(device)


@attrs.frozen
class OomStep:
    """One way to need less: what is told, which settings change; `helps` names the works that it is for."""

    told: Message
    changes: tuple[Change, ...] = ()
    helps: tuple[str, ...] = (STEP,)


class OomFallback:
    """The ways of one run. What was once climbed stays so until its end.

    Nothing of a step is lost: its gradient is dropped and calculated anew, from the same random numbers, before the optimizer steps.
    """

    def __init__(self, trainer: Trainer, course: TrainingProgress, cannot_repeat: Callable[[], bool] = lambda: False) -> None:
        self.trainer, self.course, self._cannot_repeat = trainer, course, cannot_repeat
        self._freed_at: tuple[int, str] | None = None

    def with_fallback(self, work: Callable[[], Iterator[Event]], kind: str = STEP) -> Iterator[Event]:
        """The events of `work`, which is begun anew after each rung. Raises OutOfMemory with the one remedy when no rung is left."""
        while True:
            reason = None
            try:
                yield from work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            if reason is None:
                return
            yield from self._climb(kind, reason)

    def _climb(self, kind: str, reason: str) -> Iterator[Event]:
        """Takes the next rung: here the failed work's tensors are gone, its exception being gone too."""
        trainer, step = self.trainer, self.course.step
        if kind == STEP:
            self._forget_step()
        free_cache(trainer.device)
        if not trainer.config.memory.retry or (kind == STEP and self._cannot_repeat()):
            raise out_of_memory(trainer.config, step, reason, kind, everything_tried=False)
        if self._freed_at != (step, kind):
            self._freed_at = step, kind
            yield Warned(say("Memory ran out ({reason}). What was not needed is given back, and it is done again.", reason=reason))
            return
        rung = next((rung for rung in self._rungs() if kind in rung.helps), None)
        if rung is None:
            raise out_of_memory(trainer.config, step, reason, kind)
        old = [value_at(trainer.config, change.path) for change in rung.changes]
        trainer.reset(apply_changes(trainer.config, rung.changes))
        yield Warned(rung.told, rung.changes[0].path if rung.changes else "")
        for change, before in zip(rung.changes, old, strict=True):
            yield Changed(change.path, before, change.value, step)

    def _forget_step(self) -> None:
        """Its gradient, and that it was unscaled."""
        self.trainer.optimizer.drop()
        if self.trainer.scaler is not None:
            self.trainer.scaler._per_optimizer_states.clear()

    def _rungs(self) -> Iterator[OomStep]:
        """Those that are left, the cheapest first."""
        trainer = self.trainer
        memory = trainer.config.memory
        if trainer.offload_unused():
            yield OomStep(say("Memory ran out: parts of the model that are not needed leave the GPU."), helps=(STEP, ENCODING, LOOKING))
        if trainer.cuda_graphs is not None:
            told = say("Memory ran out: steps are not recorded and replayed any more.")
            yield OomStep(told, (Change("memory.cuda_graphs", False, told),), (STEP, ENCODING, LOOKING))
        if trainer.latent_cache.batch > 1:
            told = say("Memory ran out: pictures are encoded one at a time.")
            yield OomStep(told, (Change("data.vae_batch_size", 1, told),), (ENCODING,))
        if not memory.gradient_checkpointing:
            gigabytes = checkpointing.half_budget_gb(*trainer.blocks())
            told = say("Memory ran out: half of what a step keeps is computed again instead, at most {gb} GB stay.", gb=gigabytes)
            yield OomStep(
                told,
                (Change("memory.gradient_checkpointing", True, told), Change("memory.checkpointing_budget_gb", gigabytes, told)),
            )
        elif memory.checkpointing_budget_gb:
            told = say("Memory ran out: everything that can be is computed again instead of kept.")
            yield OomStep(told, (Change("memory.checkpointing_budget_gb", 0.0, told),))
        if trainer.attention != "sliced":
            told = say("Memory ran out: attention is calculated in slices.")
            yield OomStep(told, (Change("memory.attention", "sliced", told),), (STEP, LOOKING))
        most = memory.pictures_at_once or max(trainer.dataset.batch_sizes)
        if most > 1:
            pieces = (most + 1) // 2
            told = say("Memory ran out: the pictures of a step are calculated {count} at a time, and count as before.", count=pieces)
            yield OomStep(told, (Change("memory.pictures_at_once", pieces, told),))


def out_of_memory(config: Any, step: int, reason: str, kind: str = STEP, *, everything_tried: bool = True) -> OutOfMemory:
    """The error that ends a run, with the one thing to change."""
    values: dict[str, Any] = {"step": step, "reason": reason}
    template = "memory ran out at step {step} ({reason})."
    if everything_tried:
        template = "memory ran out at step {step} ({reason}), and nothing is left that would save some without changing the result."
    width, height = effective.resolution(config)
    smaller = max(SMALLEST, int(max(width, height) * 0.75) // 64 * 64)
    if kind == STEP and not config.memory.gradient_checkpointing:
        fix, path = "Set memory.gradient_checkpointing to true.", "memory.gradient_checkpointing"
    elif kind != LOADING and smaller < max(width, height):
        fix, path = "Set data.resolution to {size}.", "data.resolution"
    elif kind == STEP and effective.trains_text_encoder(config) and effective.trains_unet(config):
        fix, path = "Set optimizer.text_encoder_lr to 0.", "optimizer.text_encoder_lr"
    else:
        fix, path = "Close other programs that use memory.", ""
    return OutOfMemory(template, fix=fix, path=path, size=smaller, **values)


def retry_after_free(make: Callable[[], Made], config: Any, device: torch.device) -> Made:
    """What `make` gives; done once more, with unneeded memory given back, when memory ran out. Raises OutOfMemory."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_cache(device)
    with raise_as_out_of_memory(lambda: config, kind=LOADING):
        return make()


@contextmanager
def raise_as_out_of_memory(config: Callable[[], Any], step: Callable[[], int] = lambda: 0, kind: str = STEP) -> Iterator[None]:
    """Whatever runs out of memory inside and is not done again ends with the one thing to change. Raises OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise out_of_memory(config(), step(), reason, kind, everything_tried=False) from error
