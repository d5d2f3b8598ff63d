"""The state of a run between two steps: captured, written, read and restored; and StateKeeper, which saves it when due.

It contains no random state, since everything random is a function of seed and step.
"""

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

from lora_trainer.errors import TrainingError
from lora_trainer.events import Event
from lora_trainer.files import sync_folder, write_durably, write_error
from lora_trainer.jobs import resume_point
from lora_trainer.jobs.resume_point import remove_leftovers
from lora_trainer.models.files.tensor_file import open_safetensors
from lora_trainer.train.outputs.background_writer import BackgroundWriter, copy_tensors
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.trainer import Trainer


VERSION = 1
NETWORK, OPTIMIZER, EMA = "network.", "optimizer.", "average."


@attrs.frozen(eq=False)
class TrainingState:
    """`tensors` are copies on the CPU; `plain` holds JSON values."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


@torch.no_grad()
def capture(trainer: Trainer, progress: TrainingProgress) -> TrainingState:
    """A copy of everything that the next steps depend on."""
    optimizer_tensors, plain = trainer.optimizer.state_dict()
    ema = trainer.ema
    tensors = {
        **{NETWORK + name: tensor for name, tensor in _parameters(trainer).items()},
        **{OPTIMIZER + name: tensor for name, tensor in optimizer_tensors.items()},
        **({EMA + name: tensor for name, tensor in ema.state_dict().items()} if ema is not None else {}),
    }
    values = {
        "version": VERSION,
        **progress.to_plain(),
        "pictures": trainer.dataset.digest,
        "optimizer": {"name": trainer.optimizer.name, **plain},
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
    }
    return TrainingState(copy_tensors(tensors), values)


@torch.no_grad()
def restore(state: TrainingState, trainer: Trainer, progress: TrainingProgress) -> None:
    """Puts the run back to where `state` was captured. Raises TrainingError for a state of another network or optimizer."""
    parameters, name = _parameters(trainer), str(state.plain["optimizer"]["name"])
    mismatched = [
        key for key, tensor in parameters.items() if (saved := state.tensors.get(NETWORK + key)) is None or saved.shape != tensor.shape
    ] or sorted({key.removeprefix(NETWORK) for key in state.tensors if key.startswith(NETWORK)} - set(parameters))
    if mismatched:
        raise TrainingError(
            "the state is of another network: {name} does not fit.",
            name=mismatched[0],
            path="network",
            fix="Resume with the model, the rank and the parts that the run began with.",
        )
    if name != trainer.optimizer.name:
        raise TrainingError(
            "the state was saved with the optimizer {name}.", name=name, path="optimizer.type", fix="Resume with the same optimizer."
        )
    for key, tensor in parameters.items():
        tensor.copy_(state.tensors[NETWORK + key])
    trainer.optimizer.load_state_dict(_with_prefix(state, OPTIMIZER), state.plain["optimizer"])
    if trainer.ema is not None:
        trainer.ema.load_state_dict(_with_prefix(state, EMA))
    if trainer.scaler is not None and state.plain["scaler"]:
        trainer.scaler.load_state_dict(state.plain["scaler"])
    progress.restore(state.plain)


def write(state: TrainingState, run_folder: Path, keep: int) -> None:
    """Writes the state to a new folder below RUN/state, atomically, then deletes all but the newest `keep`. Raises TrainerError."""
    from safetensors.torch import save

    target = resume_point.new_state_path(run_folder, state.plain["step"])
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    content = save(state.tensors)
    plain = {**state.plain, "bytes": len(content), "sha256": resume_point.sha256_hex(content)}
    try:
        part.mkdir(parents=True)
        write_durably(part / resume_point.TENSORS_FILE, content)
        write_durably(part / resume_point.JSON_FILE, json.dumps(plain, ensure_ascii=False).encode("utf-8"))
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    resume_point.remove_old_states(run_folder, keep)


def read(saved: resume_point.SavedState) -> TrainingState:
    """Reads a saved state. Raises ModelError where its tensors are damaged."""
    with open_safetensors(saved.path / resume_point.TENSORS_FILE) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return TrainingState(tensors, saved.content)


def megabytes(state: TrainingState) -> float:
    """Size on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values()) / 2**20


def _parameters(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{part}.{number}": parameter.detach()
        for part, parameters in trainer.adapter.parameters().items()
        for number, parameter in enumerate(parameters)
    }


def _with_prefix(state: TrainingState, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.tensors.items() if name.startswith(prefix)}


class StateKeeper:
    """Saves the states of one run to its folder."""

    def __init__(self, trainer: Trainer, progress: TrainingProgress, writer: BackgroundWriter, folder: Path) -> None:
        self.trainer, self.progress, self.writer, self.folder = trainer, progress, writer, folder
        self._saved_position: tuple[int, int, int] | None = None
        self._saved_at = time.monotonic()

    def mark_saved(self) -> None:
        """Marks the current position as saved."""
        self._saved_position = self._position()

    def remove_partial_files(self) -> None:
        """Deletes partly written states that a killed process left in the run's folder."""
        remove_leftovers(self.folder)

    def _position(self) -> tuple[int, int, int]:
        return self.progress.step, len(self.progress.changes), len(self.progress.files)

    def is_due(self, files: int) -> bool:
        """Whether the state is to be saved after this step, at which `files` weight files were saved."""
        options = self.trainer.config.save
        by_steps = options.state_every_n_steps and self.progress.step % options.state_every_n_steps == 0
        by_time = options.state_every_minutes and time.monotonic() - self._saved_at >= options.state_every_minutes * 60
        return bool(files or by_steps or by_time)

    def save(self) -> Iterator[Event]:
        """Queues a copy of the state for writing; does nothing where states are off or this one is saved already."""
        progress, options = self.progress, self.trainer.config.save
        position = self._position()
        if not options.state or not progress.step or position == self._saved_position:
            return
        yield from self.writer.poll()
        progress.state_count += 1
        try:
            state, folder, keep = capture(self.trainer, progress), self.folder, options.last_n_states
        except (RuntimeError, MemoryError):
            progress.state_count -= 1
            raise
        self._saved_position, self._saved_at = position, time.monotonic()
        self.writer.submit(lambda: write(state, folder, keep))

    def size_mb(self) -> float:
        """Approximate size of a state in MB (2**20 bytes)."""
        return sum(group.buffer.numel() for group in self.trainer.optimizer.groups) * 16 / 2**20


class NullStateKeeper(StateKeeper):
    """The state keeper of a process that is not the main one: saves nothing."""

    def is_due(self, files: int) -> bool:
        """False."""
        return False

    def save(self) -> Iterator[Event]:
        """Does nothing."""
        return iter(())

    def remove_partial_files(self) -> None:
        """Does nothing: the main process deletes them."""
