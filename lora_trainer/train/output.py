"""The weights that a run saves: what their headers say, and what is written beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.adapters.files import write_lora
from lora_trainer.data.describe import size_of
from lora_trainer.events import Event, Phase, Saved
from lora_trainer.host.base import Lease
from lora_trainer.train import metadata, setup
from lora_trainer.train.course import Course
from lora_trainer.train.saving import Names, write_side_files

if TYPE_CHECKING:
    from lora_trainer.train.setup import Trainer


class Output:
    """Writes the network of one run under its names."""

    def __init__(self, trainer: Trainer, course: Course, names: Names, lease: Lease) -> None:
        self.trainer, self.course, self.names = trainer, course, names
        self._shared = self._shared_words(lease)

    def save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        """Writes the weights as they are now; nothing when this run wrote that file already."""
        course = self.course
        if path in course.files:
            return
        yield Phase("saving", 1)
        sha256 = self.write(path)
        course.files.append(path)
        self.describe(path, course.preview if course.sampled_at == course.step else None)
        yield Saved(course.step, course.epoch, str(path), sha256, path.stat().st_size, final)

    def write(self, path: Path) -> str:
        """The weights as they would be saved, in a file of any name; its sha256."""
        words = metadata.moment(self._shared, step=self.course.step, epoch=self.course.epoch)
        return write_lora(path, self.trainer.adapter.state_dict(), words, self.trainer.config.save.precision)

    def describe(self, path: Path, preview: Path | None = None) -> None:
        """What the WebUI shows with a file, and its preview picture where there is one."""
        text = f"{self.names.name}: epoch {self.course.epoch}, step {self.course.step}, {self.course.plan.images} pictures"
        write_side_files(path, trigger=self.trainer.config.data.trigger_word, description=text, preview=preview)

    def _shared_words(self, lease: Lease) -> dict[str, str]:
        config, pictures = self.trainer.config, self.trainer.pictures
        facts = metadata.RunFacts(
            output_name=self.names.name,
            started_at=metadata.now(),
            checkpoint=lease.checkpoint,
            checkpoint_sha256=lease.sha256,
            vae=lease.vae_title,
            trigger=config.data.trigger_word,
            resolution=size_of(pictures.datasets[0]),
            options=setup.header_options(config, self.course.plan, pictures.datasets[0], self.trainer.precision.name),
            datasets=metadata.dataset_words(pictures.datasets, pictures.subsets, pictures.trained),
        )
        return metadata.run_metadata(facts, pictures.trained, self.trainer.adapter.metadata())


class Silent(Output):
    """Of a process that trains along with another one, which does the writing."""

    def save(self, path: Path, *, final: bool = False) -> Iterator[Event]:
        """Nothing happens."""
        return iter(())

    def _shared_words(self, lease: Lease) -> dict[str, str]:
        return {}
