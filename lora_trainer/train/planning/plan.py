"""The plan of a run: exact steps, epochs and files, and estimates of time and memory (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs

from lora_trainer.config import effective
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data import batch_sampler
from lora_trainer.data.records import ImageRecord
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.optim.schedules import Schedule, lr_curve, make_schedule
from lora_trainer.train.memory import activations
from lora_trainer.train.planning.memory_plan import (
    STEP,
    Machine,
    MemoryPhase,
    dtype_sizes,
    memory_phases,
    pixels_of,
    recompute_choice,
    shape_of,
)
from lora_trainer.train.planning.network_plan import PlannedNetwork, group_rates, planned_network

TERA = 1e12


@attrs.frozen
class Intervals:
    """How often something is done, in epochs and in steps; 0 means never. Both apply."""

    epochs: int
    steps: int

    def is_due(self, step: int, epoch: int, epoch_ends: bool) -> bool:
        """Whether it is due after this step of this epoch (both start at 1)."""
        by_step = bool(self.steps) and step % self.steps == 0
        return by_step or (epoch_ends and bool(self.epochs) and epoch % self.epochs == 0)


@attrs.frozen
class TrainingPlan:
    """What a run will do exactly, and estimates of its time (`seconds`) and memory (`memory`, in MB by part)."""

    images: int
    reg_images: int
    validation_images: int
    buckets: tuple[tuple[int, int, int], ...]
    steps_per_epoch: int
    epochs: int
    total_steps: int
    warmup_steps: int
    saves: Intervals
    previews: Intervals
    validations: Intervals
    files: int
    disk_mb: float
    seconds: float
    memory: tuple[tuple[str, float], ...]
    """The parts of the phase that needs most."""
    memory_phases: tuple[MemoryPhase, ...]
    free_mb: float
    effective_scale: float
    rates: tuple[tuple[str, float], ...]
    """Peak learning rate of each group, with batch scaling."""
    rate_scale: float
    """Factor on the configured rates from batch scaling."""
    schedule: Schedule
    network: PlannedNetwork
    processes: int = 1
    """Number of processes that share each step."""
    step_seconds: float = 0.0
    """Estimated time of one step."""

    def rate_factor(self, step: int) -> float:
        """Factor on each group's configured rate at a step (0 is the first)."""
        return self.rate_scale * self.schedule.factor(step)

    @property
    def step_memory(self) -> dict[str, float]:
        """MB of each part in a step, whatever phase needs most."""
        return dict(next(phase.parts for phase in self.memory_phases if phase.name == STEP))

    @property
    def needed_mb(self) -> float:
        """Memory of the phase that needs most, in MB."""
        return sum(megabytes for _, megabytes in self.memory)

    def to_json(self) -> dict[str, Any]:
        """The `check` document without its problems."""
        return {
            "images": self.images,
            "reg_images": self.reg_images,
            "validation_images": self.validation_images,
            "buckets": [{"width": width, "height": height, "count": count} for width, height, count in self.buckets],
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "seconds": round(self.seconds, 1),
            "files": self.files,
            "disk_mb": round(self.disk_mb, 2),
            "network": self.network.to_json(),
            "memory": {
                "parts": {name: round(megabytes, 1) for name, megabytes in self.memory},
                "phases": {phase.name: round(phase.needed_mb, 1) for phase in self.memory_phases},
                "needed_mb": round(self.needed_mb, 1),
                "free_mb": round(self.free_mb, 1),
                "fits": not self.free_mb or self.needed_mb <= self.free_mb,
                "estimate": True,
            },
            "effective_scale": self.effective_scale,
            "effective": {
                name: {
                    "rate": rate,
                    "with_network": rate * self.effective_scale,
                    "least": min((lr for _, lr in lr_curve(self.schedule, rate)), default=0.0),
                }
                for name, rate in self.rates
            },
            "rate_scale": self.rate_scale,
            "schedule": {name: lr_curve(self.schedule, rate) for name, rate in self.rates},
        }


def make_plan(
    config: TrainConfig,
    records: Sequence[ImageRecord],
    facts: ModelFacts | None,
    machine: Machine,
    datasets: Sequence[DataConfig] = (),
    processes: int = 1,
) -> TrainingPlan:
    """The plan for records with buckets; validation and regularisation pictures are counted separately.

    `datasets` are the options of each data set; without them there is one, with those of [data]. Each of several processes takes a batch
    of that size in every step.
    """
    machine = machine.for_run(config)
    datasets = tuple(datasets) or (config.data,)
    trained = [record for record in records if record.usable and not record.validation and record.repeats]
    validation_images = len([record for record in records if record.usable and record.validation])
    batch_sizes = [data.batch_size * processes for data in datasets]
    per_epoch = batch_sampler.steps_per_epoch(trained, batch_sizes, config.steps.gradient_accumulation_steps)
    epochs, total = effective.train_length(config, per_epoch)
    counts = Counter(record.bucket for record in trained if record.bucket)
    saves = Intervals(effective.interval_epochs(config.save), config.save.every_n_steps)
    previews = Intervals(effective.interval_epochs(config.sample), effective.interval_steps(config.sample))
    files = _count_files(saves, per_epoch, total)
    network = planned_network(config, facts)
    warmup, scale = (
        effective.warmup_steps(config, total),
        effective.lr_batch_scale(config, batch_sizes[0] * config.steps.gradient_accumulation_steps),
    )
    phases = memory_phases(config, datasets, facts, machine, network.parameters)
    step_seconds, encoding_seconds = _seconds(config, datasets, facts, machine, trained)
    return TrainingPlan(
        images=sum(not record.is_reg for record in trained),
        reg_images=sum(record.is_reg for record in trained),
        validation_images=validation_images,
        buckets=tuple((width, height, count) for (width, height), count in sorted(counts.items())),
        steps_per_epoch=per_epoch,
        epochs=epochs,
        total_steps=total,
        warmup_steps=warmup,
        saves=saves,
        previews=previews,
        validations=Intervals(effective.interval_epochs(config.validate), config.validate.every_n_steps),
        files=files,
        disk_mb=files * network.file_bytes / 2**20,
        seconds=total * step_seconds + encoding_seconds,
        memory=max(phases, key=lambda phase: phase.needed_mb).parts,
        memory_phases=phases,
        free_mb=machine.free_mb,
        effective_scale=effective.network_scale(config),
        rates=tuple((name, rate * scale) for name, rate in group_rates(config, facts).items()),
        rate_scale=scale,
        schedule=make_schedule(config.schedule, total, warmup, effective.decay_steps(config, total)),
        network=network,
        processes=processes,
        step_seconds=step_seconds,
    )


def _count_files(saves: Intervals, per_epoch: int, total: int) -> int:
    by_epoch = {min(step, total) for step in range(per_epoch, total + per_epoch, max(1, per_epoch))} if saves.epochs else set()
    numbered = [step for number, step in enumerate(sorted(by_epoch), start=1) if number % saves.epochs == 0 or step == total]
    by_step = [step for step in range(saves.steps, total, saves.steps) if step] if saves.steps else []
    return len(numbered) + len(by_step) + 1


def _seconds(
    config: TrainConfig,
    datasets: Sequence[DataConfig],
    facts: ModelFacts | None,
    machine: Machine,
    trained: Sequence[ImageRecord],
) -> tuple[float, float]:
    """Estimated time of a step at the mean FLOP of a batch, and of encoding each picture once."""
    shape = shape_of(facts)
    pictures = Counter(record.dataset for record in trained)
    examples: Counter[int] = Counter()
    for record in trained:
        examples[record.dataset] += record.repeats
    tflop = [activations.step_flop(shape, pixels_of(data) / 64) / TERA for data in datasets]
    batches = sum(examples[number] / data.batch_size for number, data in enumerate(datasets)) or 1.0
    batch = sum(examples[number] * tflop[number] for number in range(len(datasets))) / batches
    sizes = dtype_sizes(config, machine)
    accumulation, largest = config.steps.gradient_accumulation_steps, max(map(pixels_of, datasets))
    twice = recompute_choice(attrs.evolve(config, memory=attrs.evolve(config.memory, pictures_at_once=1)), datasets, facts, sizes).flop
    recompute_factor = 1.0 + twice / activations.step_flop(shape, largest / 64)
    encoding = sum(pictures[number] * tflop[number] for number in range(len(datasets))) * 0.6
    return accumulation * (0.05 + batch * recompute_factor / machine.tflops), encoding / machine.tflops
