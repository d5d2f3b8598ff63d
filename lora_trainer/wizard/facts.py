"""Facts about machine and data set that the wizard's rules use (no torch)."""

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
from lora_trainer.data.sources.assemble import assemble, prepare_records
from lora_trainer.data.sources.blueprint import DatasetBlueprint, resolve_dataset
from lora_trainer.train.planning.memory_plan import TFLOPS, Machine

GB = 1024.0
RESERVED_GB = 1.2
"""GB of a card that host and desktop use."""


@attrs.frozen
class MachineFacts:
    """`device` is "cuda" or "cpu"; `total_mb` of the card or the computer, `free_mb` of it available to the run.

    `lent`: a host lends its model, no part of which can be offloaded.
    """

    device: str
    total_mb: float
    free_mb: float
    lent: bool = False
    host_mb: float = 0.0
    """The part of `free_mb` that the host's model takes."""
    auto_precision: str = "fp16"
    """What memory.mixed_precision = "auto" means here."""

    @classmethod
    def from_vram(cls, gigabytes: float) -> MachineFacts:
        """A CUDA card of that many gigabytes."""
        return cls("cuda", gigabytes * GB, max(0.0, gigabytes - RESERVED_GB) * GB)

    @classmethod
    def from_memory(cls, memory: Mapping[str, Any], vram_gb: float | None = None, *, lent: bool = False) -> MachineFacts:
        """From a host's memory report ("device", "total_mb", "free_mb", "host_mb"), or for a card of `vram_gb`.

        Memory of this process counts as free: a run shares the host's model. Memory of other processes makes the card smaller.
        """
        if vram_gb:
            return cls.from_vram(vram_gb)
        total, available = float(memory.get("total_mb") or 0), float(memory.get("free_mb") or 0) + float(memory.get("host_mb") or 0)
        if str(memory.get("device", "cpu")).lower().startswith("cpu"):
            return cls("cpu", total, min(available, total), lent)
        card = min(total, available + RESERVED_GB * GB)
        auto_precision = "fp16" if lent else str(memory.get("precision") or "fp16")  # a WebUI's model has a dtype of its own
        host_mb = float(memory.get("host_mb") or 0) if lent else 0.0
        return cls("cuda", card, max(0.0, card - RESERVED_GB * GB), lent, host_mb, auto_precision)

    def for_run(self, config: TrainConfig) -> MachineFacts:
        """As a run of this config finds it: beside one in a process of its own the host keeps its model."""
        if not effective.uses_own_process(config):
            return self
        less = {name: max(0.0, getattr(self, name) - self.host_mb) for name in ("total_mb", "free_mb")}
        return attrs.evolve(self, **less, lent=False, host_mb=0.0)

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.device == "cpu"

    @property
    def gigabytes(self) -> float:
        """Size of the card (or of the computer's memory), rounded for display: 8, not 7.996."""
        return rounded(self.total_mb / GB)

    def to_machine(self) -> Machine:
        """The machine as a plan takes it."""
        return Machine(self.device, self.free_mb, TFLOPS[self.device], self.lent, self.host_mb, self.auto_precision)


@attrs.frozen
class BucketCounts:
    """One bucket: its number of training pictures, and the examples per epoch that the folder's own repeats make of them.

    `regularisation`: examples per epoch of regularisation pictures in this bucket.
    """

    pictures: int
    examples: int
    regularisation: int = 0


@attrs.frozen(eq=False)
class DatasetFacts:
    """The usable pictures of the data set, and those of the validation folder where there is one."""

    records: tuple[ImageRecord, ...]
    validation_records: tuple[ImageRecord, ...] = ()
    blueprint: DatasetBlueprint | None = None

    @classmethod
    def read(cls, config: TrainConfig) -> DatasetFacts:
        """Scans the folders that the config names. Raises DatasetError."""
        blueprint = resolve_dataset(config.data, config.validate.data_dir)
        usable = [record for record in assemble(blueprint).records if record.usable]
        return cls(
            tuple(record for record in usable if not record.validation),
            tuple(record for record in usable if record.validation),
            blueprint,
        )

    @property
    def images(self) -> int:
        """Number of usable pictures, later validation pictures included, regularisation pictures not."""
        return sum(not record.is_reg for record in self.records)

    @property
    def captions(self) -> int:
        """Number of those that have a caption file."""
        return sum(record.has_caption for record in self.records if not record.is_reg)

    @property
    def smallest_side(self) -> int:
        """Shortest side of all pictures, in pixels."""
        return min((min(record.width, record.height) for record in self.records), default=0)

    @property
    def folder_repeats(self) -> bool:
        """Whether folder names (`10_mika`) or subsets set the repeats, so that data.num_repeats has no effect."""
        has_subsets = self.blueprint is not None and not self.blueprint.is_simple
        return has_subsets or any(folders.parse_folder_name(record.path.parent.name) for record in self.records if not record.is_reg)

    def has_validation(self, config: TrainConfig) -> bool:
        """Whether pictures are held back already: a folder of them, a share of all, or a share of a subset."""
        subsets = self.blueprint.subsets if self.blueprint is not None else ()
        return bool(self.validation_records or config.validate.fraction or any(rules.validation_split for rules in subsets))

    def bucketed(self, config: TrainConfig) -> list[ImageRecord]:
        """The records as a run with this config has them: with repeats, validation split and buckets."""
        records = self.records
        if not self.folder_repeats:
            records = tuple(record if record.is_reg else attrs.evolve(record, repeats=config.data.num_repeats) for record in records)
        blueprint = attrs.evolve(self.blueprint or resolve_dataset(config.data), datasets=self.datasets(config))
        prior, fraction = config.loss.prior_loss_weight, 0.0 if self.validation_records else config.validate.fraction
        return prepare_records(
            (*records, *self.validation_records), blueprint, seed=effective.validation_seed(config), fraction=fraction, prior_weight=prior
        )

    def datasets(self, config: TrainConfig) -> tuple[DataConfig, ...]:
        """Options of each data set; those of [data] may have changed since the folders were read."""
        if self.blueprint is None or self.blueprint.is_simple:
            return (config.data,)
        return self.blueprint.datasets

    def fixed_options(self, config: TrainConfig) -> frozenset[str]:
        """Paths of the [data] options whose change would have no effect: a dataset file or every subset table sets them."""
        if config.data.dataset_config.strip():
            return frozenset(f"data.{name}" for name in (*PER_DATASET, *PER_SUBSET))
        tables = [{name for name, _ in table.values} for table in config.data.subsets]
        return frozenset(f"data.{name}" for name in set.intersection(*tables)) if tables else frozenset()

    def with_dataset_options(self, config: TrainConfig) -> TrainConfig:
        """The config with resolution and batch size of the first data set, where subsets override [data]."""
        first = self.datasets(config)[0]
        if first == config.data:
            return config
        return attrs.evolve(config, data=attrs.evolve(config.data, resolution=first.resolution, batch_size=first.batch_size))

    def bucket_counts(self, config: TrainConfig) -> tuple[BucketCounts, ...]:
        """Pictures and examples per bucket, sorted by bucket size."""
        pictures: Counter[Any] = Counter()
        examples: Counter[Any] = Counter()
        regularisation: Counter[Any] = Counter()
        for record in self.bucketed(config):
            if not record.validation:
                pictures[record.bucket] += not record.is_reg
                (regularisation if record.is_reg else examples)[record.bucket] += record.repeats
        return tuple(BucketCounts(pictures[bucket], examples[bucket], regularisation[bucket]) for bucket in sorted(pictures))


def rounded(number: float, digits: int = 1) -> float:
    """Rounded to `digits`; an int where nothing follows the decimal point."""
    value = round(number, digits)
    return int(value) if value == int(value) else value
