"""Out of memory: the work is repeated with less memory, one setting after the other, until nothing is left to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from lora_trainer.config.changes import Change, apply_changes, value_at
from lora_trainer.events import Changed, Event, Warned
from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.messages import Message, say
from lora_trainer.train.memory import checkpointing
from lora_trainer.train.memory.oom import free_cache, out_of_memory
from lora_trainer.train.memory.placement import CAPTIONS, EVALUATING, PICTURES, STEP
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.trainer import Trainer


@attrs.frozen
class OomStep:
    """One way to need less memory: the warning, the settings that change, and the kinds of work that it helps."""

    message: Message
    changes: tuple[Change, ...] = ()
    kinds: tuple[str, ...] = (STEP,)


class OomFallback:
    """Repeats the work of one run when memory runs out. What it changes stays so until the end of the run.

    Nothing of a step is lost: its gradient is dropped and computed again, from the same random numbers, before the optimizer steps.
    `cannot_repeat` says that the optimizer has stepped already.
    """

    def __init__(self, trainer: Trainer, progress: TrainingProgress, cannot_repeat: Callable[[], bool] = lambda: False) -> None:
        self.trainer, self.progress, self._cannot_repeat = trainer, progress, cannot_repeat
        self._done: set[tuple[int, str, str]] = set()

    def with_fallback(self, work: Callable[[], Iterator[Event]], kind: str = STEP) -> Iterator[Event]:
        """The events of `work`, which is called again after each OomStep. Raises OutOfMemory with one remedy when none is left.

        The parts of the model that this kind of work needs are on the device when it begins.
        """
        while True:
            reason = None
            try:
                self.trainer.make_ready(kind)
                yield from work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error, self.trainer.device):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            if reason is None:
                return
            yield from self._free_or_reduce(kind, reason)

    def _free_or_reduce(self, kind: str, reason: str) -> Iterator[Event]:
        """Frees memory, the next time applies an OomStep. The failed work's tensors are gone here, as its exception is."""
        trainer, step = self.trainer, self.progress.step
        if kind == STEP:
            self._drop_gradient()
        free_cache(trainer.device)
        if not trainer.config.memory.retry or (kind == STEP and self._cannot_repeat()):
            raise out_of_memory(trainer.config, step, reason, kind, everything_tried=False)
        if self._is_first_time(kind, "free"):
            yield Warned(say("Memory ran out ({reason}). Unused memory is freed, and the work is repeated.", reason=reason))
            return
        oom_step = next((oom_step for oom_step in self._remaining_steps(kind) if kind in oom_step.kinds), None)
        if oom_step is None:
            raise out_of_memory(trainer.config, step, reason, kind)
        old_values = [value_at(trainer.config, change.path) for change in oom_step.changes]
        trainer.reconfigure(apply_changes(trainer.config, oom_step.changes))
        yield Warned(oom_step.message, oom_step.changes[0].path if oom_step.changes else "")
        for change, before in zip(oom_step.changes, old_values, strict=True):
            yield Changed(change.path, before, change.value, step)

    def _drop_gradient(self) -> None:
        """Drops the step's gradient, and that the scaler has unscaled it."""
        self.trainer.optimizer.zero_grad()
        if self.trainer.scaler is not None:
            self.trainer.scaler._per_optimizer_states.clear()

    def _is_first_time(self, kind: str, measure: str) -> bool:
        """Whether a measure is new at this step for this kind of work: the repeated work undoes some, which must not be tried for ever."""
        key = self.progress.step, kind, measure
        is_first = key not in self._done
        self._done.add(key)
        return is_first

    def _remaining_steps(self, kind: str) -> Iterator[OomStep]:
        """The steps that are left for a kind of work, the cheapest first."""
        trainer = self.trainer
        memory = trainer.config.memory
        if self._is_first_time(kind, "offload") and trainer.offload_unused(kind):
            message = say("Memory ran out: parts of the model that are not needed are moved off the GPU.")
            yield OomStep(message, kinds=(kind,))
        if trainer.cuda_graphs is not None:
            message = say("Memory ran out: CUDA graphs are turned off.")
            yield OomStep(message, (Change("memory.cuda_graphs", False, message),), (kind,))
        if trainer.latent_cache.batch_size > 1:
            message = say("Memory ran out: pictures are encoded one at a time.")
            yield OomStep(message, (Change("data.vae_batch_size", 1, message),), (PICTURES,))
        if (kind == PICTURES or (kind != CAPTIONS and not trainer.config.data.cache_latents)) and trainer.use_vae_strips():
            message = say("Memory ran out: the VAE works on strips of a picture; the result stays the same but for rounding.")
            yield OomStep(message, kinds=(kind,))
        if not memory.gradient_checkpointing:
            gigabytes = checkpointing.half_budget_gb(*trainer.activation_blocks())
            message = say("Memory ran out: half of the activations are recomputed, at most {gb} GB are kept.", gb=gigabytes)
            yield OomStep(
                message,
                (Change("memory.gradient_checkpointing", True, message), Change("memory.checkpointing_budget_gb", gigabytes, message)),
            )
        elif memory.checkpointing_budget_gb:
            message = say("Memory ran out: all activations that can be are recomputed instead of kept.")
            yield OomStep(message, (Change("memory.checkpointing_budget_gb", 0.0, message),))
        if trainer.attention != "sliced":
            message = say("Memory ran out: attention is calculated in slices.")
            yield OomStep(message, (Change("memory.attention", "sliced", message),), (STEP, EVALUATING))
        pictures_at_once = memory.pictures_at_once or max(trainer.dataset.batch_sizes)
        if pictures_at_once > 1:
            half = (pictures_at_once + 1) // 2
            message = say("Memory ran out: the pictures of a step are computed {count} at a time; the result stays the same.", count=half)
            yield OomStep(message, (Change("memory.pictures_at_once", half, message),))
