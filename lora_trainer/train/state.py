"""The whole state of a run between two steps: taken, written whole, read, put back. Nothing random is in it: chance is a function."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from lora_trainer.errors import TrainerError, TrainingError
from lora_trainer.events import Event
from lora_trainer.files import sync_folder, write_durably
from lora_trainer.jobs import resume_point
from lora_trainer.jobs.resume_point import sweep
from lora_trainer.train.outputs.background_writer import BackgroundWriter, copy_tensors
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.trainer import Trainer


VERSION = 1
NETWORK, OPTIMIZER, AVERAGE = "network.", "optimizer.", "average."


@attrs.frozen(eq=False)
class TrainingState:
    """`tensors` on the CPU, owned by nobody else; `plain` as JSON can hold it."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


@torch.no_grad()
def capture(trainer: Trainer, course: TrainingProgress) -> TrainingState:
    """A copy of all that the next steps depend on."""
    kept, plain = trainer.optimizer.state_dict()
    average = trainer.ema
    tensors = {
        **{NETWORK + name: tensor for name, tensor in _parameters(trainer).items()},
        **{OPTIMIZER + name: tensor for name, tensor in kept.items()},
        **({AVERAGE + name: tensor for name, tensor in average.state_dict().items()} if average is not None else {}),
    }
    whole = {
        "version": VERSION,
        **course.to_plain(),
        "pictures": trainer.dataset.digest,
        "optimizer": {"name": trainer.optimizer.name, **plain},
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
    }
    return TrainingState(copy_tensors(tensors), whole)


@torch.no_grad()
def restore(state: TrainingState, trainer: Trainer, course: TrainingProgress) -> None:
    """The run is where it was when `state` was taken. Raises TrainerError where network or optimizer are of another kind."""
    own, name = _parameters(trainer), str(state.plain["optimizer"]["name"])
    wrong = [
        key for key, tensor in own.items() if (held := state.tensors.get(NETWORK + key)) is None or held.shape != tensor.shape
    ] or sorted({key.removeprefix(NETWORK) for key in state.tensors if key.startswith(NETWORK)} - set(own))
    if wrong:
        raise TrainingError(
            "the state is of another network: {name} does not fit.",
            name=wrong[0],
            path="network",
            fix="Resume with the model, the rank and the parts that the run began with.",
        )
    if name != trainer.optimizer.name:
        raise TrainingError(
            "the state was kept by the optimizer {name}.", name=name, path="optimizer.type", fix="Resume with the same optimizer."
        )
    for key, tensor in own.items():
        tensor.copy_(state.tensors[NETWORK + key])
    trainer.optimizer.load_state_dict(_part(state, OPTIMIZER), state.plain["optimizer"])
    if trainer.ema is not None:
        trainer.ema.load_state_dict(_part(state, AVERAGE))
    if trainer.scaler is not None and state.plain["scaler"]:
        trainer.scaler.load_state_dict(state.plain["scaler"])
    course.restore(state.plain)


def write(state: TrainingState, run: Path, keep: int) -> None:
    """Writes it whole below RUN/state under a name of its own, then deletes older ones. Raises TrainerError."""
    from safetensors.torch import save

    target = resume_point.free_place(run, state.plain["step"])
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    content = save(state.tensors)
    plain = {**state.plain, "bytes": len(content), "sha256": resume_point.digest(content)}
    try:
        part.mkdir(parents=True)
        write_durably(part / resume_point.TENSORS, content)
        write_durably(part / resume_point.PLAIN, json.dumps(plain, ensure_ascii=False).encode("utf-8"))
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise TrainerError(
            "{path} could not be written ({reason}).",
            path=str(target),
            reason=error.strerror or error,
            fix="Free some disk space or choose another folder.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    resume_point.remove_old(run, keep)


def read(kept: resume_point.KeptState) -> TrainingState:
    """The state that stands there."""
    from safetensors import safe_open

    with safe_open(str(kept.path / resume_point.TENSORS), framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return TrainingState(tensors, kept.plain)


def megabytes(state: TrainingState) -> float:
    """What it takes on the disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values()) / 2**20


def _parameters(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{part}.{number}": parameter.detach()
        for part, parameters in trainer.adapter.parameters().items()
        for number, parameter in enumerate(parameters)
    }


def _part(state: TrainingState, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.tensors.items() if name.startswith(prefix)}


class StateKeeper:
    """The states of one run, in its folder."""

    def __init__(self, trainer: Trainer, course: TrainingProgress, writer: BackgroundWriter, folder: Path) -> None:
        self.trainer, self.course, self.writer, self.folder = trainer, course, writer, folder
        self._kept: tuple[int, int, int] | None = None
        self._at = time.monotonic()

    def mark_saved(self) -> None:
        """The run is at a state that is on the disk."""
        self._kept = self._now()

    def sweep(self) -> None:
        """Takes away what a killed process left half-written in the run's folder."""
        sweep(self.folder)

    def _now(self) -> tuple[int, int, int]:
        return self.course.step, len(self.course.changes), len(self.course.files)

    def due(self, files: int) -> bool:
        """Whether the state is to be kept after this step, when `files` of weights were saved at it."""
        options = self.trainer.config.save
        by_steps = options.state_every_n_steps and self.course.step % options.state_every_n_steps == 0
        by_time = options.state_every_minutes and time.monotonic() - self._at >= options.state_every_minutes * 60
        return bool(files or by_steps or by_time)

    def save(self) -> Iterator[Event]:
        """Hands a copy of the state to the writer; nothing where there is none to keep, or this one is kept already."""
        course, options = self.course, self.trainer.config.save
        now = self._now()
        if not options.state or not course.step or now == self._kept:
            return
        yield from self.writer.notes()
        course.states += 1
        try:
            state, folder, count = capture(self.trainer, course), self.folder, options.last_n_states
        except (RuntimeError, MemoryError):
            course.states -= 1
            raise
        self._kept, self._at = now, time.monotonic()
        self.writer.put(lambda: write(state, folder, count))

    def megabytes(self) -> float:
        """About what a state takes on the disk."""
        return sum(group.buffer.numel() for group in self.trainer.optimizer.groups) * 16 / 2**20


class NullStateKeeper(StateKeeper):
    """Of a process that trains along with another one, which keeps the state of both."""

    def due(self, files: int) -> bool:
        """Never."""
        return False

    def save(self) -> Iterator[Event]:
        """Nothing is written."""
        return iter(())

    def sweep(self) -> None:
        """The first process does."""
