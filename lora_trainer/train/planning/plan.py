"""What will happen, exactly, before anything starts: steps, epochs, files, and an estimate of time and memory (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs

from lora_trainer.config import effective
from lora_trainer.config.choices.optimizers import optimizer_named
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data import batch_sampler
from lora_trainer.data.records import ImageRecord
from lora_trainer.data.sources.blueprint import size_of
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.optim.schedules import Schedule, curve, schedule_of
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import DtypeSizes, RecomputeChoice, UNetShape
from lora_trainer.train.planning.network_plan import PlannedNetwork, group_rates, planned_network

BYTES = {"no": 4, "fp16": 2, "bf16": 2, "float": 4}
TERA = 1e12
SD1_TEXTS = ((768, 12),)


@attrs.frozen
class Machine:
    """What the plan needs to know of the machine: `free_mb` for the run, `tflops` a guess of what it really reaches.

    `lent`: a host lends its model, which stays as it is and where it is, unless the run is a process of its own.
    """

    device: str = "cpu"
    free_mb: float = 0.0
    tflops: float = 0.05
    lent: bool = False


@attrs.frozen
class Intervals:
    """When something happens between steps; 0 means never. `epochs` and `steps` both count."""

    epochs: int
    steps: int

    def is_due(self, step: int, epoch: int, epoch_ends: bool) -> bool:
        """Whether it happens after this step (1 is the first) of this epoch (1 is the first)."""
        by_step = bool(self.steps) and step % self.steps == 0
        return by_step or (epoch_ends and bool(self.epochs) and epoch % self.epochs == 0)


@attrs.frozen
class TrainingPlan:
    """The exact course of a run, and estimates (marked so) of what it costs."""

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
    """Each group's learning rate where the schedule is at its height, scaled by the batch."""
    rate_scale: float
    """What the batch makes of the rates as they are written."""
    schedule: Schedule
    network: PlannedNetwork
    processes: int = 1
    """So many share the pictures of a step."""

    def rate_factor(self, step: int) -> float:
        """What each group's written rate is multiplied by at a step (0 is the first)."""
        return self.rate_scale * self.schedule.factor(step)

    @property
    def needed_mb(self) -> float:
        """All parts of the memory estimate together."""
        return sum(megabytes for _, megabytes in self.memory)

    def to_json(self) -> dict[str, Any]:
        """The `check` shape, without its problems."""
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
                    "least": min((lr for _, lr in curve(self.schedule, rate)), default=0.0),
                }
                for name, rate in self.rates
            },
            "rate_scale": self.rate_scale,
            "schedule": {name: curve(self.schedule, rate) for name, rate in self.rates},
        }


def make_plan(
    config: TrainConfig,
    records: Sequence[ImageRecord],
    facts: ModelFacts | None,
    machine: Machine,
    datasets: Sequence[DataConfig] = (),
    processes: int = 1,
) -> TrainingPlan:
    """The plan for usable, placed records (validation and regularisation pictures among them are counted apart).

    `datasets` hold the options of each dataset; without them all pictures are of one with [data]'s. Of several processes each takes
    a batch of that size in every step.
    """
    datasets = tuple(datasets) or (config.data,)
    trained = [record for record in records if record.usable and not record.validation and record.repeats]
    held = len([record for record in records if record.usable and record.validation])
    together = [data.batch_size * processes for data in datasets]
    per_epoch = batch_sampler.steps_per_epoch(trained, together, config.steps.gradient_accumulation_steps)
    epochs, total = effective.train_length(config, per_epoch)
    counts = Counter(record.bucket for record in trained if record.bucket)
    saves = Intervals(effective.interval_epochs(config.save), config.save.every_n_steps)
    previews = Intervals(effective.interval_epochs(config.sample), effective.interval_steps(config.sample))
    files = _count_files(saves, per_epoch, total)
    network = planned_network(config, facts)
    warmup, scale = (
        effective.warmup_steps(config, total),
        effective.batch_factor(config, together[0] * config.steps.gradient_accumulation_steps),
    )
    return TrainingPlan(
        images=sum(not record.is_reg for record in trained),
        reg_images=sum(record.is_reg for record in trained),
        validation_images=held,
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
        seconds=_seconds(config, datasets, facts, machine, total, trained),
        memory=_memory(config, datasets, facts, machine, network.parameters),
        free_mb=machine.free_mb,
        effective_scale=effective.network_scale(config),
        rates=tuple((name, rate * scale) for name, rate in group_rates(config, facts).items()),
        rate_scale=scale,
        schedule=schedule_of(config.schedule, total, warmup, effective.decay_steps(config, total)),
        network=network,
        processes=processes,
    )


def step_parts(choice: RecomputeChoice, trained: int, numbers: DtypeSizes, state: float = 8.0) -> dict[str, float]:
    """Bytes that training needs besides the model: the network's numbers, the optimizer's (`state` bytes for each), and a step's own.

    `choice` is what becomes of each block of the model. The most is needed where backward begins, or where the gradients are whole.
    """
    copies = trained * numbers.size if numbers.size < 4 else 0
    return {"network": 4.0 * trained + copies, "optimizer": state * trained, "activations": max(choice.peak, 4.0 * trained + copies)}


def _count_files(saves: Intervals, per_epoch: int, total: int) -> int:
    by_epoch = {min(step, total) for step in range(per_epoch, total + per_epoch, max(1, per_epoch))} if saves.epochs else set()
    numbered = [step for number, step in enumerate(sorted(by_epoch), start=1) if number % saves.epochs == 0 or step == total]
    by_step = [step for step in range(saves.steps, total, saves.steps) if step] if saves.steps else []
    return len(numbered) + len(by_step) + 1


def _memory(
    config: TrainConfig, datasets: Sequence[DataConfig], facts: ModelFacts | None, machine: Machine, network: int
) -> tuple[tuple[str, float], ...]:
    """Parts in MB: what the model takes, the network with its gradient, the optimizer, a step's own, what kernels want for themselves."""
    numbers = dtype_sizes(config, machine.device)
    unet, text, vae = (860e6, 123e6, 84e6) if facts is None else (facts.unet_parameters, facts.text_parameters, facts.vae_parameters)
    kept_vae = vae * (4 if machine.device == "cpu" else 0)
    own = not machine.lent or config.memory.own_process
    kept_text = 0 if own and effective.keeps_captions(config) and machine.device != "cpu" else text
    of_unet = unet if own and config.memory.fp8_base_unet else unet * numbers.size
    parts = step_parts(recompute_choice(config, datasets, facts, numbers), network, numbers, optimizer_named(config.optimizer.type).bytes)
    return (
        ("model", (of_unet + kept_text * numbers.size + kept_vae) / 2**20),
        *((name, taken / 2**20) for name, taken in parts.items()),
        ("workspace", 600.0 if machine.device != "cpu" else 100.0),
    )


def dtype_sizes(config: TrainConfig, device: str) -> DtypeSizes:
    """Bytes of a number in a step. "auto" on a GPU is taken for fp16: what most WebUIs hold."""
    precision = config.memory.mixed_precision
    if precision == "auto":
        precision = "no" if device == "cpu" else "fp16"
    return DtypeSizes(BYTES[precision], BYTES[precision] if device == "cpu" else 4)


def recompute_choice(config: TrainConfig, datasets: Sequence[DataConfig], facts: ModelFacts | None, numbers: DtypeSizes) -> RecomputeChoice:
    """What becomes of each block of the model in the largest step."""
    memory, rank = config.memory, config.network.dim
    most = memory.pictures_at_once
    sizes = [(_pixels(data), min(data.batch_size, most) if most else data.batch_size) for data in datasets]
    pixels, pictures = max(sizes, key=lambda size: size[0] * size[1])
    shape = shape_of(facts, half=numbers.size < 4 and memory.mixed_precision != "bf16")
    cells = max(1, pixels // 64)
    blocks = list(activations.unet(shape, cells, pictures, rank, numbers))
    if effective.trains_text_encoder(config):
        texts = SD1_TEXTS if facts is None or not facts.texts else facts.texts
        named = ((f"text_encoder.{encoder}.{number}", width) for encoder, (width, layers) in enumerate(texts) for number in range(layers))
        blocks += [activations.text_layer(name, width, pictures, rank, numbers) for name, width in named]
    rest = activations.rest(shape, cells * pictures, rank, numbers)
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest)
    budget = memory.checkpointing_budget_gb * 2**30
    return activations.within(blocks, rest, budget) if budget else activations.all_again(blocks, rest)


def shape_of(facts: ModelFacts | None, *, half: bool = False) -> UNetShape:
    """The U-Net's shape as far as the facts tell it; Stable Diffusion 1.5's where there are none. `half`: calculated in float16."""
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
    total: int,
    trained: Sequence[ImageRecord],
) -> float:
    """Steps of about the mean work of a batch, and each picture encoded once."""
    shape = shape_of(facts)
    pictures = Counter(record.dataset for record in trained)
    showings: Counter[int] = Counter()
    for record in trained:
        showings[record.dataset] += record.repeats
    work = [activations.step_flop(shape, _pixels(data) / 64) / TERA for data in datasets]
    batches = sum(showings[number] / data.batch_size for number, data in enumerate(datasets)) or 1.0
    batch = sum(showings[number] * work[number] for number in range(len(datasets))) / batches
    numbers = dtype_sizes(config, machine.device)
    accumulation, largest = config.steps.gradient_accumulation_steps, max(map(_pixels, datasets))
    twice = recompute_choice(attrs.evolve(config, memory=attrs.evolve(config.memory, pictures_at_once=1)), datasets, facts, numbers).flop
    again = 1.0 + twice / activations.step_flop(shape, largest / 64)
    encoding = sum(pictures[number] * work[number] for number in range(len(datasets))) * 0.6
    return total * accumulation * (0.05 + batch * again / machine.tflops) + encoding / machine.tflops


def _pixels(data: DataConfig) -> int:
    width, height = size_of(data)
    return width * height
