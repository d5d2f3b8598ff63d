"""What the wizard knows of machine and pictures (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from lora_trainer.config import effective
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.config.subsets import PER_DATASET, PER_SUBSET
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources import folders
from lora_trainer.data.sources.assemble import assemble, into_buckets
from lora_trainer.data.sources.blueprint import DatasetBlueprint, resolve_dataset
from lora_trainer.train.planning.plan import Machine

GB = 1024.0
KEPT_GB = 1.2
"""What host and desktop keep of a card."""
TFLOPS = {"cpu": 0.05, "cuda": 10.0}


@attrs.frozen
class MachineFacts:
    """`device` is "cuda" or "cpu"; `total_mb` of the card or of the computer, `free_mb` of it for the run.

    `lent`: a host lends its model, of which nothing leaves the card.
    """

    device: str
    total_mb: float
    free_mb: float
    lent: bool = False

    @classmethod
    def of_card(cls, gigabytes: float) -> MachineFacts:
        """A CUDA card of that size."""
        return cls("cuda", gigabytes * GB, max(0.0, gigabytes - KEPT_GB) * GB)

    @classmethod
    def of(cls, memory: Mapping[str, Any], vram_gb: float | None = None, *, lent: bool = False) -> MachineFacts:
        """From what a host says of its memory, unless a card is named.

        What this process holds counts as free: a run shares the host's model. What others hold makes the card smaller.
        """
        if vram_gb:
            return cls.of_card(vram_gb)
        total, available = float(memory.get("total_mb") or 0), float(memory.get("free_mb") or 0) + float(memory.get("host_mb") or 0)
        if str(memory.get("device", "cpu")).lower().startswith("cpu"):
            return cls("cpu", total, min(available, total), lent)
        card = min(total, available + KEPT_GB * GB)
        return cls("cuda", card, max(0.0, card - KEPT_GB * GB), lent)

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.device == "cpu"

    @property
    def gigabytes(self) -> float:
        """Size of the card (or of the computer's memory) as one says it: 8, not 7.996."""
        return whole(self.total_mb / GB)

    def for_plan(self) -> Machine:
        """As a plan wants it."""
        return Machine(self.device, self.free_mb, TFLOPS[self.device], self.lent)


@attrs.frozen
class Group:
    """Pictures of one size: how many are trained on, and how often they come in an epoch with the folder's own repeats.

    `regularisation`: how often regularisation pictures of this size come beside them.
    """

    pictures: int
    showings: int
    regularisation: int = 0


@attrs.frozen(eq=False)
class DatasetFacts:
    """The usable pictures of a folder, and those of the validation folder where there is one."""

    records: tuple[ImageRecord, ...]
    held: tuple[ImageRecord, ...] = ()
    description: DatasetBlueprint | None = None

    @classmethod
    def read(cls, config: TrainConfig) -> DatasetFacts:
        """Scans what the config names. Raises DatasetError."""
        description = resolve_dataset(config.data, config.validate.data_dir)
        usable = [record for record in assemble(description).records if record.usable]
        return cls(
            tuple(record for record in usable if not record.validation),
            tuple(record for record in usable if record.validation),
            description,
        )

    @property
    def images(self) -> int:
        """How many pictures can be used, those to be held back among them; without regularisation."""
        return sum(not record.is_reg for record in self.records)

    @property
    def captions(self) -> int:
        """How many of them have a caption file."""
        return sum(record.has_caption for record in self.records if not record.is_reg)

    @property
    def smallest_side(self) -> int:
        """Pixels of the shortest side of all pictures."""
        return min((min(record.width, record.height) for record in self.records), default=0)

    @property
    def folder_repeats(self) -> bool:
        """Whether the repeats stand in the folders' names (`10_name`) or with each folder, so that data.num_repeats counts for nothing."""
        several = self.description is not None and not self.description.simple
        return several or any(folders.numbered_name(record.path.parent.name) for record in self.records if not record.is_reg)

    def placed(self, config: TrainConfig) -> list[ImageRecord]:
        """The records as a run with this config has them: repeated, held back, in their buckets."""
        records = self.records
        if not self.folder_repeats:
            records = tuple(record if record.is_reg else attrs.evolve(record, repeats=config.data.num_repeats) for record in records)
        description = attrs.evolve(self.description or resolve_dataset(config.data), datasets=self.datasets(config))
        prior, fraction = config.loss.prior_loss_weight, 0.0 if self.held else config.validate.fraction
        return into_buckets(
            (*records, *self.held), description, seed=effective.validation_seed(config), fraction=fraction, prior_weight=prior
        )

    def datasets(self, config: TrainConfig) -> tuple[DataConfig, ...]:
        """Options of each dataset; [data]'s may have changed since the folders were read."""
        if self.description is None or self.description.simple:
            return (config.data,)
        return self.description.datasets

    def fixed(self, config: TrainConfig) -> frozenset[str]:
        """Options of [data] that no change would reach: a dataset file says them, or every table does."""
        if config.data.dataset_config.strip():
            return frozenset(f"data.{name}" for name in (*PER_DATASET, *PER_SUBSET))
        tables = [{name for name, _ in table.given} for table in config.data.subsets]
        return frozenset(f"data.{name}" for name in set.intersection(*tables)) if tables else frozenset()

    def as_trained(self, config: TrainConfig) -> TrainConfig:
        """The config with the training size and pictures per step of the first dataset, where these do not stand in [data]."""
        first = self.datasets(config)[0]
        if first == config.data:
            return config
        return attrs.evolve(config, data=attrs.evolve(config.data, resolution=first.resolution, batch_size=first.batch_size))

    def groups(self, config: TrainConfig) -> tuple[Group, ...]:
        """The trained pictures by bucket."""
        pictures: Counter[Any] = Counter()
        showings: Counter[Any] = Counter()
        regularisation: Counter[Any] = Counter()
        for record in self.placed(config):
            if not record.validation:
                pictures[record.bucket] += not record.is_reg
                (regularisation if record.is_reg else showings)[record.bucket] += record.repeats
        return tuple(Group(pictures[bucket], showings[bucket], regularisation[bucket]) for bucket in sorted(pictures))


def whole(number: float, digits: int = 1) -> float:
    """Rounded, without a point where it is whole."""
    rounded = round(number, digits)
    return int(rounded) if rounded == int(rounded) else rounded
