"""Saves the weights of a run, with their headers and side files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lora_trainer.adapters.lora_file import write_lora
from lora_trainer.data.sources.blueprint import resolution_of
from lora_trainer.events import Event, Phase, Saved
from lora_trainer.files import file_sha256
from lora_trainer.host.base import Lease
from lora_trainer.train import setup
from lora_trainer.train.outputs import metadata
from lora_trainer.train.outputs.background_writer import BackgroundWriter, copy_tensors
from lora_trainer.train.outputs.ema import weights_metadata
from lora_trainer.train.outputs.network_metadata import network_metadata
from lora_trainer.train.outputs.saving import OutputNames, remove_partial_files, write_side_files
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.trainer import Trainer


class Output:
    """Writes the network of one run in the background, under its output names."""

    def __init__(self, trainer: Trainer, progress: TrainingProgress, names: OutputNames, lease: Lease, writer: BackgroundWriter) -> None:
        self.trainer, self.progress, self.names, self.writer = trainer, progress, names, writer
        progress.started_at = progress.started_at or metadata.now()
        self._shared_metadata = self._make_shared_metadata(lease)

    def save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        """Queues a copy of the current weights for writing; does nothing when this run has already saved `path`."""
        progress, trainer = self.progress, self.trainer
        if path in progress.files:
            return
        yield Phase("saving", 1)
        yield from self.writer.poll()
        weights, fields, precision = self._copy_weights(), self._metadata(), trainer.config.save.precision
        progress.files.append(path)
        progress.saves[str(path)] = step, epoch, final, average = progress.step, progress.epoch, final, progress.loss_average
        write_side = self._side_files_job(path)

        def write() -> Saved:
            sha256 = write_lora(path, weights, fields, precision)
            write_side()
            return Saved(step, epoch, str(path), sha256, path.stat().st_size, final, average)

        self.writer.submit(write)

    def replay(self, reported: Collection[str]) -> Iterator[Event]:
        """Saved events of files that a killed process wrote but did not report; `reported` are the paths that it did."""
        for path, (step, epoch, final, average) in self.progress.saves.items():
            if path not in reported and Path(path).is_file():
                yield Saved(step, epoch, path, file_sha256(Path(path)), Path(path).stat().st_size, final, average)

    def remove_partial_files(self) -> None:
        """Deletes partly written files that a killed process left behind."""
        remove_partial_files(self.names)

    def write(self, path: Path) -> None:
        """Writes the weights as they would be saved, immediately and to any path."""
        write_lora(path, self._copy_weights(), self._metadata(), self.trainer.config.save.precision)

    def attach_preview(self, path: Path) -> None:
        """Queues writing the preview picture of this step beside a file."""
        self.writer.submit(self._side_files_job(path))

    def size_mb(self) -> float:
        """Approximate size of a file in MB (2**20 bytes)."""
        return sum(group.buffer.numel() for group in self.trainer.optimizer.groups) * 4 / 2**20

    def _copy_weights(self) -> dict[str, Tensor]:
        """A copy on the CPU of the weights to save."""
        with self.trainer.ema_weights():
            return copy_tensors(self.trainer.adapter.state_dict())

    def _metadata(self) -> dict[str, str]:
        average = weights_metadata(self.trainer.optimizer, self.trainer.ema)
        return {**metadata.metadata_at_step(self._shared_metadata, step=self.progress.step, epoch=self.progress.epoch), **average}

    def _side_files_job(self, path: Path) -> Callable[[], None]:
        """A job that writes the .json that the WebUI shows with a file, and its preview picture where this step has one."""
        progress, trigger = self.progress, self.trainer.config.data.trigger_word
        text = f"{self.names.name}: epoch {progress.epoch}, step {progress.step}, {progress.plan.images} pictures"
        preview = progress.preview_path if progress.sampled_at == progress.step else None
        return lambda: write_side_files(path, trigger=trigger, description=text, preview=preview)

    def _make_shared_metadata(self, lease: Lease) -> dict[str, str]:
        config, dataset = self.trainer.config, self.trainer.dataset
        facts = metadata.RunFacts(
            output_name=self.names.name,
            started_at=self.progress.started_at,
            checkpoint=lease.checkpoint,
            checkpoint_sha256=lease.sha256,
            vae=lease.vae_title,
            trigger=config.data.trigger_word,
            resolution=resolution_of(dataset.datasets[0]),
            options=setup.header_options(
                config, self.progress.plan, dataset.datasets[0], self.trainer.precision.name, self.trainer.bundle.prediction
            ),
            datasets=metadata.dataset_metadata(dataset.datasets, dataset.subsets, dataset.train_records),
            family=self.trainer.bundle.family.name,
            prediction=self.trainer.bundle.prediction,
            zero_terminal_snr=self.trainer.bundle.zero_terminal_snr,
        )
        network = {**self.trainer.adapter.metadata(), **network_metadata(config.network)}
        return metadata.run_metadata(facts, dataset.train_records, network, dataset.caption_rules_of)


class NullOutput(Output):
    """The output of a process that is not the main one: writes nothing."""

    def save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        """Does nothing."""
        return iter(())

    def replay(self, reported: Collection[str]) -> Iterator[Event]:
        """Yields nothing: the main process reports."""
        return iter(())

    def remove_partial_files(self) -> None:
        """Does nothing: the main process deletes them."""

    def _make_shared_metadata(self, lease: Lease) -> dict[str, str]:
        return {}
