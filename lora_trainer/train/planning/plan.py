"""The plan of a run: exact steps, epochs and files, and estimates of time and memory (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.config import effective
from lora_trainer.config.choices.optimizers import optimizer_spec
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data import batch_sampler
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import resolution_of
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.optim.schedules import Schedule, lr_curve, make_schedule
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import DtypeSizes, RecomputeChoice, UNetShape
from lora_trainer.train.planning.network_plan import PlannedNetwork, group_rates, planned_network

DTYPE_BYTES = {"no": 4, "fp16": 2, "bf16": 2, "float": 4}
TERA = 1e12
TFLOPS = {"cpu": 0.05, "cuda": 10.0}
"""A guess of the throughput in practice."""
SD1_TEXTS = ((768, 12),)


@attrs.frozen
class Machine:
    """The machine of a run: `free_mb` memory for it, `tflops` a guess of the throughput in practice.

    `lent`: a host lends its model, which can be neither converted nor offloaded, unless the run is a process of its own.
    """

    device: str = "cpu"
    free_mb: float = 0.0
    tflops: float = 0.05
    lent: bool = False
    host_mb: float = 0.0
    """The part of `free_mb` that the host's model takes: free for a run that shares it, not for one in a process of its own."""
    auto_precision: str = "fp16"
    """What memory.mixed_precision = "auto" means on this GPU for the model of the run: fp16, which most WebUIs use, where it is unknown."""

    @classmethod
    def of(cls, device: str, memory: Mapping[str, Any], *, lent: bool, auto_precision: str) -> Machine:
        """The machine of a run that begins now, by its host's memory report."""
        shared = float(memory.get("host_mb") or 0) if lent else 0.0
        return cls(device, float(memory["free_mb"]) + shared, TFLOPS.get(device, TFLOPS["cuda"]), lent, shared, auto_precision)

    def for_run(self, config: TrainConfig) -> Machine:
        """As a run of this config finds it: one in a process of its own reads its model from the file, and the host keeps its own."""
        if not effective.uses_own_process(config):
            return self
        return attrs.evolve(self, free_mb=max(0.0, self.free_mb - self.host_mb), host_mb=0.0, lent=False)


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
    def needed_mb(self) -> float:
        """Sum of all parts of the memory estimate, in MB."""
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
        memory=_memory(config, datasets, facts, machine, network.parameters),
        free_mb=machine.free_mb,
        effective_scale=effective.network_scale(config),
        rates=tuple((name, rate * scale) for name, rate in group_rates(config, facts).items()),
        rate_scale=scale,
        schedule=make_schedule(config.schedule, total, warmup, effective.decay_steps(config, total)),
        network=network,
        processes=processes,
        step_seconds=step_seconds,
    )


def memory_parts(choice: RecomputeChoice, trained: int, sizes: DtypeSizes, state: float = 8.0) -> dict[str, float]:
    """Bytes that training `trained` parameters needs besides the model: parameters, optimizer state (`state` bytes each), activations.

    `choice` says which blocks are recomputed. Memory peaks at the start of backward, or when all gradients exist.
    """
    copies = trained * sizes.compute if sizes.compute < 4 else 0
    return {"network": 4.0 * trained + copies, "optimizer": state * trained, "activations": max(choice.peak_bytes, 4.0 * trained + copies)}


def _count_files(saves: Intervals, per_epoch: int, total: int) -> int:
    by_epoch = {min(step, total) for step in range(per_epoch, total + per_epoch, max(1, per_epoch))} if saves.epochs else set()
    numbered = [step for number, step in enumerate(sorted(by_epoch), start=1) if number % saves.epochs == 0 or step == total]
    by_step = [step for step in range(saves.steps, total, saves.steps) if step] if saves.steps else []
    return len(numbered) + len(by_step) + 1


def _memory(
    config: TrainConfig, datasets: Sequence[DataConfig], facts: ModelFacts | None, machine: Machine, network: int
) -> tuple[tuple[str, float], ...]:
    """Parts in MB: model, network with its copies, optimizer state, activations or gradients, kernel workspace."""
    sizes = dtype_sizes(config, machine)
    unet, text, vae = (860e6, 123e6, 84e6) if facts is None else (facts.unet_parameters, facts.text_parameters, facts.vae_parameters)
    vae_bytes = vae * (4 if machine.device == "cpu" else 0)
    is_own = not machine.lent
    resident_text = 0 if is_own and effective.caches_captions(config) and machine.device != "cpu" else text
    unet_bytes = unet if is_own and config.memory.fp8_base_unet else unet * sizes.compute
    parts = memory_parts(
        recompute_choice(config, datasets, facts, sizes), network, sizes, optimizer_spec(config.optimizer.type).state_bytes
    )
    return (
        ("model", (unet_bytes + resident_text * sizes.compute + vae_bytes) / 2**20),
        *((name, size / 2**20) for name, size in parts.items()),
        ("workspace", 600.0 if machine.device != "cpu" else 100.0),
    )


def dtype_sizes(config: TrainConfig, machine: Machine) -> DtypeSizes:
    """Bytes per value in a step."""
    precision, on_cpu = config.memory.mixed_precision, machine.device == "cpu"
    if precision == "auto":
        precision = "no" if on_cpu else machine.auto_precision
    return DtypeSizes(DTYPE_BYTES[precision], DTYPE_BYTES[precision] if on_cpu else 4)


def recompute_choice(config: TrainConfig, datasets: Sequence[DataConfig], facts: ModelFacts | None, dtypes: DtypeSizes) -> RecomputeChoice:
    """Which blocks of the model are recomputed, for the largest batch."""
    memory, rank = config.memory, config.network.dim
    limit = memory.pictures_at_once
    batches = [(_pixels(data), min(data.batch_size, limit) if limit else data.batch_size) for data in datasets]
    pixels, pictures = max(batches, key=lambda batch: batch[0] * batch[1])
    shape = shape_of(facts, half=dtypes.compute < 4 and memory.mixed_precision != "bf16")
    cells = max(1, pixels // 64)
    blocks = list(activations.unet_blocks(shape, cells, pictures, rank, dtypes))
    if effective.trains_text_encoder(config):
        texts = SD1_TEXTS if facts is None or not facts.texts else facts.texts
        encoder_layers = (
            (f"text_encoder.{encoder}.{number}", width) for encoder, (width, layers) in enumerate(texts) for number in range(layers)
        )
        blocks += [activations.clip_layer(name, width, pictures, rank, dtypes) for name, width in encoder_layers]
    rest = activations.bytes_between_blocks(shape, cells * pictures, rank, dtypes)
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest)
    budget = memory.checkpointing_budget_gb * 2**30
    return activations.recompute_within(blocks, rest, budget) if budget else activations.recompute_all(blocks, rest)


def shape_of(facts: ModelFacts | None, *, half: bool = False) -> UNetShape:
    """The U-Net's shape; Stable Diffusion 1.5's where it is unknown. `half`: computed in float16."""
    if facts is None or not facts.unet_levels:
        return activations.SD1
    row = layout.row(facts.family)
    levels = tuple((width, depth, row.unet_heads or max(1, width // 64)) for width, depth in facts.unet_levels)
    return UNetShape(levels, facts.middle_depth, facts.context_width, upcast=half and row.v2)


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
    tflop = [activations.step_flop(shape, _pixels(data) / 64) / TERA for data in datasets]
    batches = sum(examples[number] / data.batch_size for number, data in enumerate(datasets)) or 1.0
    batch = sum(examples[number] * tflop[number] for number in range(len(datasets))) / batches
    sizes = dtype_sizes(config, machine)
    accumulation, largest = config.steps.gradient_accumulation_steps, max(map(_pixels, datasets))
    twice = recompute_choice(attrs.evolve(config, memory=attrs.evolve(config.memory, pictures_at_once=1)), datasets, facts, sizes).flop
    recompute_factor = 1.0 + twice / activations.step_flop(shape, largest / 64)
    encoding = sum(pictures[number] * tflop[number] for number in range(len(datasets))) * 0.6
    return accumulation * (0.05 + batch * recompute_factor / machine.tflops), encoding / machine.tflops


def _pixels(data: DataConfig) -> int:
    width, height = resolution_of(data)
    return width * height
