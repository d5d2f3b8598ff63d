"""The weights that a run saves: what their headers say, and what is written beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lora_trainer.adapters.lora_file import write_lora
from lora_trainer.data.sources.blueprint import size_of
from lora_trainer.events import Event, Phase, Saved
from lora_trainer.files import file_sha256
from lora_trainer.host.base import Lease
from lora_trainer.train import setup
from lora_trainer.train.outputs import metadata
from lora_trainer.train.outputs.background_writer import BackgroundWriter, copy_tensors
from lora_trainer.train.outputs.ema import weights_word
from lora_trainer.train.outputs.network_metadata import header_words
from lora_trainer.train.outputs.saving import OutputNames, sweep, write_side_files
from lora_trainer.train.progress import TrainingProgress

if TYPE_CHECKING:
    from lora_trainer.train.trainer import Trainer


class Output:
    """Writes the network of one run under its names, beside the steps."""

    def __init__(self, trainer: Trainer, course: TrainingProgress, names: OutputNames, lease: Lease, writer: BackgroundWriter) -> None:
        self.trainer, self.course, self.names, self.writer = trainer, course, names, writer
        course.began = course.began or metadata.now()
        self._shared = self._shared_words(lease)

    def save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        """Hands the weights as they are now to the writer; nothing when this run wrote that file already."""
        course, trainer = self.course, self.trainer
        if path in course.files:
            return
        yield Phase("saving", 1)
        yield from self.writer.notes()
        state, words, precision = self._weights(), self._words(), trainer.config.save.precision
        course.files.append(path)
        course.saves[str(path)] = step, epoch, final, average = course.step, course.epoch, final, course.loss_average
        beside = self._beside(path)

        def write() -> Saved:
            sha256 = write_lora(path, state, words, precision)
            beside()
            return Saved(step, epoch, str(path), sha256, path.stat().st_size, final, average)

        self.writer.put(write)

    def replay(self, told: Collection[str]) -> Iterator[Event]:
        """The files whose writing a killed process could not tell of any more."""
        for path, (step, epoch, final, average) in self.course.saves.items():
            if path not in told and Path(path).is_file():
                yield Saved(step, epoch, path, file_sha256(Path(path)), Path(path).stat().st_size, final, average)

    def sweep(self) -> None:
        """Takes away what a killed process left half-written among the files."""
        sweep(self.names)

    def write(self, path: Path) -> None:
        """The weights as they would be saved, at once and in a file of any name."""
        write_lora(path, self._weights(), self._words(), self.trainer.config.save.precision)

    def show_with(self, path: Path) -> None:
        """Puts the preview picture of this step beside a file."""
        self.writer.put(self._beside(path))

    def megabytes(self) -> float:
        """About what a file takes on the disk."""
        return sum(group.buffer.numel() for group in self.trainer.optimizer.groups) * 4 / 2**20

    def _weights(self) -> dict[str, Tensor]:
        """A copy on the CPU that nobody else changes."""
        with self.trainer.ema_weights():
            return copy_tensors(self.trainer.adapter.state_dict())

    def _words(self) -> dict[str, str]:
        kind = weights_word(self.trainer.optimizer, self.trainer.ema)
        return {**metadata.moment(self._shared, step=self.course.step, epoch=self.course.epoch), **kind}

    def _beside(self, path: Path) -> Callable[[], None]:
        """Writes what the WebUI shows with a file, and its preview picture where there is one of this step."""
        course, trigger = self.course, self.trainer.config.data.trigger_word
        text = f"{self.names.name}: epoch {course.epoch}, step {course.step}, {course.plan.images} pictures"
        preview = course.preview if course.sampled_at == course.step else None
        return lambda: write_side_files(path, trigger=trigger, description=text, preview=preview)

    def _shared_words(self, lease: Lease) -> dict[str, str]:
        config, pictures = self.trainer.config, self.trainer.dataset
        facts = metadata.RunFacts(
            output_name=self.names.name,
            started_at=self.course.began,
            checkpoint=lease.checkpoint,
            checkpoint_sha256=lease.sha256,
            vae=lease.vae_title,
            trigger=config.data.trigger_word,
            resolution=size_of(pictures.datasets[0]),
            options=setup.header_options(config, self.course.plan, pictures.datasets[0], self.trainer.precision.name),
            datasets=metadata.dataset_words(pictures.datasets, pictures.subsets, pictures.trained),
            family=self.trainer.bundle.family.name,
            prediction=self.trainer.bundle.prediction,
            zero_terminal_snr=self.trainer.bundle.zero_terminal_snr,
        )
        network = {**self.trainer.adapter.metadata(), **header_words(config.network)}
        return metadata.run_metadata(facts, pictures.trained, network)


class NullOutput(Output):
    """Of a process that trains along with another one, which does the writing."""

    def save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        """Nothing happens."""
        return iter(())

    def replay(self, told: Collection[str]) -> Iterator[Event]:
        """The first process tells."""
        return iter(())

    def sweep(self) -> None:
        """The first process does."""

    def _shared_words(self, lease: Lease) -> dict[str, str]:
        return {}
