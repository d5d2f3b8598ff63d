"""What is watched while a run goes on: numbers that are none, a loss that runs away, steps that become slow, a disk that fills up."""

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
"""So many steps in a row without a usable number cannot become well again."""
HALVINGS = 16
"""So often a GradScaler halves its factor, from 65536 to 1, until a step without a number says something about the network."""
RUNAWAY = 3.0
"""A loss of so many times the lowest is no chance any more, with means over this many steps."""
WINDOW = 100
SLOWER = 3.0
"""A step that takes so many times as long as at first."""
SPARE_MB = 64.0
ONE_TOKEN = 64
"""Pictures of at most this side are one single token in the middle block, whose attention then has nothing to choose."""
MIDDLE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"


class FiniteGuard:
    """Steps whose loss or gradient is no number are left out; too many in a row end the run with what is behind it."""

    def __init__(self, remedy: Callable[[], Message], *, scaled: bool) -> None:
        self.remedy, self.patience = remedy, BAD_STEPS + (HALVINGS if scaled else 0)
        self._in_a_row = 0

    def is_finite(self, loss: float, norm: float) -> bool:
        """Whether the step was usable. Raises TrainingError when it is hopeless."""
        fine = math.isfinite(loss) and math.isfinite(norm)
        self._in_a_row = 0 if fine else self._in_a_row + 1
        if not math.isfinite(loss) and self._in_a_row >= BAD_STEPS:
            raise self._hopeless("the loss has been no number for {count} steps.")
        if self._in_a_row >= self.patience:
            raise self._hopeless("the gradient has been no number for {count} steps.")
        return fine

    def _hopeless(self, template: str) -> TrainingError:
        return TrainingError(template, count=self._in_a_row, remedy=self.remedy(), fix="{remedy}")


class DivergenceGuard:
    """Notices a loss that has run away from where it was: compares means over `WINDOW` steps with the lowest of them."""

    def __init__(self) -> None:
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf
        self._seen = 0
        self._told = False

    def look(self, step: int, loss: float) -> Message | None:
        """After each step; once a warning."""
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
    """Notices steps that become slow because the GPU's memory is full and the driver moves parts of it to ordinary memory."""

    def __init__(self, full: float = 0.03) -> None:
        self.full = full
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=10)
        self._told = False

    def look(self, seconds: float, free: Callable[[], float]) -> Message | None:
        """After each step: its time, and how to ask which share of the GPU's memory is free; once a warning."""
        if len(self._first) < 20:
            self._first.append(seconds)
            return None
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


class Guards:
    """All of them for one run."""

    def __init__(self, trainer: Trainer, course: TrainingProgress) -> None:
        self.trainer, self.course = trainer, course
        self._numbers = FiniteGuard(self._remedy, scaled=trainer.scaler is not None)
        self._divergence, self._pace = DivergenceGuard(), SlowStepGuard()
        self._found: list[Message | None] = []

    def look(self, loss: float, norm: float, seconds: float) -> None:
        """After each step. Raises TrainingError when it is hopeless."""
        self.course.skipped += not self._numbers.is_finite(loss, norm)
        self._found = [self._divergence.look(self.course.step + 1, loss), self._pace.look(seconds, self._free)]

    def warnings(self) -> Iterator[Event]:
        """What was noticed at this step."""
        found, self._found = self._found, []
        yield from (Warned(message) for message in found if message is not None)

    def _remedy(self) -> Message:
        network = (tensor for part in self.trainer.adapter.parameters().values() for tensor in part)
        return remedy(self.trainer.precision.name, largest(network), self.trainer.config.loss)

    def _free(self) -> float:
        """Which share of the GPU's memory is free; 1 where there is none."""
        device = self.trainer.device
        if device.type != "cuda":
            return 1.0
        free, total = torch.cuda.mem_get_info(device)
        return free / total


def missing_mb(folder: Path, needed_mb: float) -> float:
    """How many MB the disk of `folder` lacks for a file of `needed_mb` and a little more; 0 where there is room."""
    place = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), None)
    if place is None:
        return 0.0
    try:
        free = shutil.disk_usage(place).free / 2**20
    except OSError:  # a file system that does not tell
        return 0.0
    return max(0.0, needed_mb + SPARE_MB - free)


def check_disk(folder: Path, name: str, plan: TrainingPlan) -> Message | None:
    """What to say before the start of a disk that cannot hold all files of a run.

    Raises TrainerError where not even the first one has room: such a run would wait for it as soon as it has learned something.
    """
    one, lacking = plan.disk_mb / max(1, plan.files), missing_mb(folder, plan.disk_mb)
    if missing_mb(folder, one):
        raise TrainerError(
            "the disk of {folder} has no room for {name}: a file takes {mb} MB, and some space has to stay free.",
            folder=str(folder),
            name=name,
            mb=round(one, 1),
            path="save.output_dir",
            fix="Free some disk space or choose another folder.",
        )
    if not lacking:
        return None
    return say(
        "The disk of {folder} lacks {mb} MB for all {count} files of this run: it will wait until there is room.",
        folder=str(folder),
        mb=round(lacking),
        count=plan.files,
    )


def check_moved(trainer: Trainer) -> None:
    """After ten steps every layer that gets a gradient has moved; raises TrainingError naming the first that has not."""
    rates = {"unet": effective.unet_lr(trainer.config), "text_encoder": effective.text_encoder_lr(trainer.config)}
    unmoved = trainer.adapter.untrained_layers()
    still = [name for part, names in unmoved.items() if rates[part] > 0 for name in names if not _without_effect(trainer, name)]
    if still:
        raise TrainingError(
            "after ten steps {count} layers have not moved, the first is {name}.",
            count=len(still),
            name=still[0],
            fix="Please report this: nothing useful is being learned.",
        )


def _without_effect(trainer: Trainer, name: str) -> bool:
    """Whether a layer cannot matter in this run: text layers behind the one that is read, asking and being asked of one token."""
    if name.startswith("lora_te"):
        number = next(number for number, prefix in enumerate(text_prefixes(trainer.bundle)) if name.startswith(f"{prefix}_"))
        encoder = trainer.bundle.text_encoders[number]
        unread = trainer.bundle.family.unread_layers(trainer.bundle, trainer.config.model.clip_skip)[number]
        return int(name.split("_layers_")[1].split("_")[0]) >= encoder.config.num_hidden_layers - unread
    small = all(max(record.bucket or (0, 0)) <= ONE_TOKEN for record in trainer.dataset.trained)
    return small and name.startswith(MIDDLE) and name[len(MIDDLE) :] in ("q", "k")


GROWN = 5.0
"""Numbers of a network stay around 1 and below; one of this size means that steps were far too long."""
HEAVY = 50.0
"""A weight of the loss that makes single pictures count so many times as much."""
LEAST_SIGNAL = 0.0047
"""Signal to noise at the last step of Stable Diffusion 1.x."""


def largest(network: Iterable[Tensor]) -> float:
    """The largest number of the network without its sign; infinite where one is no number."""
    found = [float(tensor.detach().abs().max()) for tensor in network if tensor.numel()]
    return max((size if math.isfinite(size) else math.inf for size in found), default=0.0)


def remedy(precision: str, size: float, loss: LossConfig) -> Message:
    """The most likely cause, with what to do. `size` is the network's largest number, `precision` no, fp16 or bf16."""
    if size > GROWN:
        return say(
            "The network's numbers have grown to {size}: the learning rate is far too high. Take a tenth of it or less.", size=_shown(size)
        )
    if precision == "fp16":
        return say('Set memory.mixed_precision to "bf16" or "no": fp16 knows no large numbers, and some cards are wrong with it.')
    if (times := 1.0 + loss.v_pred_like_loss * (1.0 + 1.0 / LEAST_SIGNAL)) > HEAVY:
        return say("loss.v_pred_like_loss makes very noisy pictures count {times} times: take a smaller value.", times=round(times))
    return say("Use a lower learning rate. Where that does not help, the model or the VAE is damaged: try another file.")


def _shown(size: float) -> str:
    return f"{size:.0f}" if size < 1e6 else f"{size:.0e}"
