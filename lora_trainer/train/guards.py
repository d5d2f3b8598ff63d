"""What is watched during a run: values that are not finite, divergence, steps that become slow, disk space."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_trainer.adapters.targets import text_prefixes
from lora_trainer.config import effective
from lora_trainer.config.schema import LossConfig
from lora_trainer.errors import TrainerError, TrainingError
from lora_trainer.events import Event, Warned
from lora_trainer.messages import Message, say
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.planning.plan import TrainingPlan
    from lora_trainer.train.trainer import Trainer


BAD_STEPS = 10
"""After so many steps in a row that are not finite the run cannot recover."""
HALVINGS = 16
"""So often a GradScaler halves its scale, from 65536 to 1, before an overflow says anything about the network."""
RUNAWAY = 3.0
"""A mean loss of so many times the lowest is divergence, not chance."""
WINDOW = 100
SLOWER = 3.0
"""A step is slow when it takes so many times as long as at first."""
FAR_SLOWER = 6.0
"""The plan knows the card only roughly: so many times its seconds are no longer a matter of the card."""
SPARE_MB = 64.0
ONE_TOKEN = 64
"""Pictures of at most this side are one single token in the middle block, where self-attention then has no effect."""
MIDDLE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"


class FiniteGuard:
    """Counts steps whose loss or gradient is not finite, which are skipped; too many in a row end the run with the likely cause."""

    def __init__(self, remedy: Callable[[], Message], *, scaled: bool) -> None:
        self.remedy, self.patience = remedy, BAD_STEPS + (HALVINGS if scaled else 0)
        self._in_a_row = 0

    def is_finite(self, loss: float, norm: float) -> bool:
        """Whether a step was usable. Raises TrainingError after too many in a row that were not."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if not math.isfinite(loss) and self._in_a_row >= BAD_STEPS:
            raise self._hopeless("the loss has not been finite for {count} steps.")
        if self._in_a_row >= self.patience:
            raise self._hopeless("the gradient has not been finite for {count} steps.")
        return finite

    def _hopeless(self, template: str) -> TrainingError:
        return TrainingError(template, count=self._in_a_row, remedy=self.remedy(), fix="{remedy}")


class DivergenceGuard:
    """Notices divergence: compares mean losses over `WINDOW` steps with the lowest of them."""

    def __init__(self) -> None:
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf
        self._seen = 0
        self._told = False

    def check(self, step: int, loss: float) -> Message | None:
        """Takes the loss of a step; returns a warning the first time that the run has diverged."""
        if not math.isfinite(loss):
            return None
        self._window.append(loss)
        self._seen += 1
        if self._told or self._seen % WINDOW:
            return None
        mean = sum(self._window) / len(self._window)
        self._lowest = min(self._lowest, mean)
        if mean <= RUNAWAY * self._lowest:
            return None
        self._told = True
        return say(
            "At step {step} the loss is {times} times what it was at its lowest: the run has probably diverged. Stop it, take an earlier "
            "file, and use a lower learning rate.",
            step=step,
            times=round(mean / self._lowest, 1),
        )


class SlowStepGuard:
    """Notices steps that are slow because the GPU's memory is full and the driver swaps it to system memory.

    Such a run may be slow from its first step on, so its first steps are compared with the plan's `expected` seconds (0: unknown).
    """

    def __init__(self, expected: float = 0.0, full: float = 0.03) -> None:
        self.expected, self.full = expected, full
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=10)
        self._told = False

    def check(self, seconds: float, free: Callable[[], float]) -> Message | None:
        """Takes the seconds of a step, and a function that gives the free share of the GPU's memory; returns a warning once."""
        if len(self._first) < 20:
            self._first.append(seconds)
            return self._check_first(free) if len(self._first) == 20 and self.expected else None
        self._last.append(seconds)
        if self._told or len(self._last) < 10:
            return None
        times, left = median(self._last) / median(self._first[5:]), 0.0
        if times < SLOWER or (left := free()) > self.full:
            return None
        self._told = True
        return say(
            "Steps take {times} times as long as at first, and {percent} % of the GPU's memory is free: parts of it are being moved to "
            "ordinary memory. Take fewer pictures per step, a smaller size, or gradient checkpointing.",
            times=round(times, 1),
            percent=round(left * 100),
        )

    def _check_first(self, free: Callable[[], float]) -> Message | None:
        usual = median(self._first[5:])
        if usual < FAR_SLOWER * self.expected or (left := free()) > self.full:
            return None
        self._told = True
        return say(
            "Steps take {seconds} s, {times} times as long as the plan expects, and {percent} % of the GPU's memory is free: parts of it "
            "are probably being moved to ordinary memory. Take fewer pictures per step, a smaller size, or gradient checkpointing.",
            seconds=round(usual, 1),
            times=round(usual / self.expected, 1),
            percent=round(left * 100),
        )


class Guards:
    """All guards of one run."""

    def __init__(self, trainer: Trainer, progress: TrainingProgress) -> None:
        self.trainer, self.progress = trainer, progress
        self._numbers = FiniteGuard(self._remedy, scaled=trainer.scaler is not None)
        self._divergence, self._pace = (
            DivergenceGuard(),
            SlowStepGuard(progress.plan.step_seconds if trainer.device.type == "cuda" else 0.0),
        )
        self._messages: list[Message | None] = []

    def check_step(self, loss: float, norm: float, seconds: float) -> None:
        """Takes loss, gradient norm and seconds of a step. Raises TrainingError when the run cannot recover."""
        self.progress.skipped += not self._numbers.is_finite(loss, norm)
        self._messages = [self._divergence.check(self.progress.step + 1, loss), self._pace.check(seconds, self._free)]

    def warnings(self) -> Iterator[Event]:
        """What was noticed at the last step."""
        messages, self._messages = self._messages, []
        yield from (Warned(message) for message in messages if message is not None)

    def _remedy(self) -> Message:
        parameters = (tensor for part in self.trainer.adapter.parameters().values() for tensor in part)
        return remedy(self.trainer.precision.name, max_abs(parameters), self.trainer.config.loss)

    def _free(self) -> float:
        """The free share of the GPU's memory; 1 without a GPU."""
        device = self.trainer.device
        if device.type != "cuda":
            return 1.0
        free, total = torch.cuda.mem_get_info(device)
        return free / total


def missing_mb(folder: Path, needed_mb: float) -> float:
    """How many MB the disk of `folder` lacks for a file of `needed_mb` plus SPARE_MB; 0 where there is room."""
    existing = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), None)
    if existing is None:
        return 0.0
    try:
        free = shutil.disk_usage(existing).free / 2**20
    except OSError:  # a file system that does not report its space
        return 0.0
    return max(0.0, needed_mb + SPARE_MB - free)


def check_disk(folder: Path, name: str, plan: TrainingPlan) -> Message | None:
    """A warning, before the start, where the disk cannot hold all files of a run.

    Raises TrainerError where there is not even room for the first one: the run would have to wait at its first save.
    """
    file_mb, missing = plan.disk_mb / max(1, plan.files), missing_mb(folder, plan.disk_mb)
    if missing_mb(folder, file_mb):
        raise TrainerError(
            "the disk of {folder} has no room for {name}: a file takes {mb} MB, and some space has to stay free.",
            folder=str(folder),
            name=name,
            mb=round(file_mb, 1),
            path="save.output_dir",
            fix="Free some disk space or choose another folder.",
        )
    if not missing:
        return None
    return say(
        "The disk of {folder} lacks {mb} MB for all {count} files of this run: it will wait until there is room.",
        folder=str(folder),
        mb=round(missing),
        count=plan.files,
    )


def check_layers_trained(trainer: Trainer) -> None:
    """Raises TrainingError naming the first layer that gets a gradient and is still as it was initialised."""
    rates = {"unet": effective.unet_lr(trainer.config), "text_encoder": effective.text_encoder_lr(trainer.config)}
    untrained = trainer.adapter.untrained_layers()
    unchanged = [name for part, names in untrained.items() if rates[part] > 0 for name in names if not _has_no_effect(trainer, name)]
    if unchanged:
        raise TrainingError(
            "after ten steps {count} layers have not changed; the first is {name}.",
            count=len(unchanged),
            name=unchanged[0],
            fix="Please report this: nothing useful is being learned.",
        )


def _has_no_effect(trainer: Trainer, name: str) -> bool:
    """Whether a layer cannot get a gradient in this run: text layers after the one that is read (clip skip), q and k for a single token."""
    if name.startswith("lora_te"):
        number = next(number for number, prefix in enumerate(text_prefixes(trainer.bundle)) if name.startswith(f"{prefix}_"))
        encoder = trainer.bundle.text_encoders[number]
        unused = trainer.bundle.family.unused_layers(trainer.bundle, trainer.config.model.clip_skip)[number]
        return int(name.split("_layers_")[1].split("_")[0]) >= encoder.config.num_hidden_layers - unused
    is_single_token = all(max(record.bucket or (0, 0)) <= ONE_TOKEN for record in trainer.dataset.train_records)
    return is_single_token and name.startswith(MIDDLE) and name[len(MIDDLE) :] in ("q", "k")


GROWN = 5.0
"""Weights of a network stay around 1 and below; one of this size means that the learning rate was far too high."""
HEAVY = 50.0
"""A loss weight that makes single pictures count so many times as much."""
LEAST_SIGNAL = 0.0047
"""Signal-to-noise ratio at the last timestep of Stable Diffusion 1.x."""


def max_abs(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value of all tensors; infinite when one is not finite."""
    largest = [float(tensor.detach().abs().max()) for tensor in tensors if tensor.numel()]
    return max((size if math.isfinite(size) else math.inf for size in largest), default=0.0)


def remedy(precision: str, largest_weight: float, loss_config: LossConfig) -> Message:
    """The most likely cause of values that are not finite, with what to do.

    `precision` is no, fp16 or bf16; `largest_weight` the largest absolute value of the network.
    """
    if largest_weight > GROWN:
        return say(
            "The network's weights have grown to {size}: the learning rate is far too high. Take a tenth of it or less.",
            size=_format_size(largest_weight),
        )
    if precision == "fp16":
        return say('Set memory.mixed_precision to "bf16" or "no": fp16 overflows at large values, and some cards compute it wrongly.')
    if (times := 1.0 + loss_config.v_pred_like_loss * (1.0 + 1.0 / LEAST_SIGNAL)) > HEAVY:
        return say("loss.v_pred_like_loss makes very noisy pictures count {times} times: take a smaller value.", times=round(times))
    return say("Use a lower learning rate. Where that does not help, the model or the VAE is damaged: try another file.")


def _format_size(size: float) -> str:
    return f"{size:.0f}" if size < 1e6 else f"{size:.0e}"
