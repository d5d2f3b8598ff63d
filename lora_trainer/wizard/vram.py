"""The memory ladder: what a card of a given size trains at once, for LoRA on each family (no torch)."""

from __future__ import annotations

import attrs

from lora_trainer.config.schema import TrainConfig
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.train.planning.plan import make_plan
from lora_trainer.wizard.facts import GB, MachineFacts

FULL = 0.9
"""Share of the free memory that a plan may fill."""
SLACK_GB = 0.5
"""A card called 8 GB says 7.6 to 8."""
CPU_BATCH = 4


@attrs.frozen
class MemoryTier:
    """A card of `gb`: pictures a step at a ladder's small size and at its large one (0: does not fit), each with or without recomputing.

    `text_encoder`: whether it is trained too.
    """

    gb: float
    batch: int
    checkpointing: bool
    large_batch: int
    large_checkpointing: bool
    text_encoder: bool = True
    rank: int = 1024


@attrs.frozen
class MemoryTiers:
    """The rungs of a family, lowest first, and the sides in pixels that they speak of."""

    small: int
    large: int
    rungs: tuple[MemoryTier, ...]


SD1 = MemoryTiers(
    512,
    768,
    (
        MemoryTier(4, 1, True, 0, True, text_encoder=False, rank=8),
        MemoryTier(6, 2, True, 1, True, text_encoder=False),
        MemoryTier(8, 2, False, 2, True),
        MemoryTier(10, 4, False, 2, True),
        MemoryTier(12, 6, False, 3, False),
        MemoryTier(16, 8, False, 4, False),
        MemoryTier(24, 8, False, 6, False),
        MemoryTier(32, 16, False, 12, False),
    ),
)
"""Stable Diffusion 1 and 2."""
SDXL = MemoryTiers(
    768,
    1024,
    (
        MemoryTier(4, 1, True, 0, True, text_encoder=False, rank=8),
        MemoryTier(8, 1, True, 1, True, text_encoder=False, rank=8),
        MemoryTier(10, 2, True, 2, True, text_encoder=False, rank=16),
        MemoryTier(12, 3, True, 2, True, text_encoder=False, rank=64),
        MemoryTier(16, 4, True, 3, True, text_encoder=False),
        MemoryTier(24, 8, True, 8, True, text_encoder=False),
        MemoryTier(32, 16, True, 12, True, text_encoder=False),
    ),
)
"""Two text encoders of 1.6 GB stay as they are: the U-Net alone learns subjects and styles."""
LADDERS = {"sdxl": SDXL}


@attrs.frozen
class Limits:
    """What the memory allows: pictures a step, whether with recomputing, whether the text encoder is trained, largest rank."""

    batch: int
    checkpointing: bool
    text_encoder: bool
    rank: int


def ladder(family: str) -> MemoryTiers:
    """Of a family by its name."""
    return LADDERS.get(family, SD1)


def rung(machine: MachineFacts, family: str = "sd1") -> MemoryTier:
    """The highest rung that the card reaches; the lowest for a smaller card."""
    rungs = ladder(family).rungs
    reached = [rung for rung in rungs if rung.gb <= machine.total_mb / GB + SLACK_GB]
    return reached[-1] if reached else rungs[0]


def limits(machine: MachineFacts, pixels: int, family: str = "sd1") -> Limits:
    """The ladder's answer for pictures of this many pixels. Without a GPU more pictures a step save no time."""
    here, sizes = rung(machine, family), ladder(family)
    if machine.on_cpu:
        return Limits(CPU_BATCH, False, sizes.rungs[-1].text_encoder, 1024)
    if pixels <= sizes.small**2:
        return Limits(here.batch, here.checkpointing, here.text_encoder, here.rank)
    batch = max(1, int(here.large_batch * min(1.0, sizes.large**2 / pixels)))
    return Limits(batch, here.large_checkpointing or pixels > sizes.large**2, here.text_encoder, here.rank)


def needed_mb(config: TrainConfig, model: ModelFacts | None, machine: MachineFacts) -> float:
    """The plan's estimate for this config."""
    return make_plan(config, (), model, machine.for_plan()).needed_mb


def fits(megabytes: float, machine: MachineFacts) -> bool:
    """Whether that leaves a tenth of the free memory; where the memory is unknown everything fits."""
    return not machine.free_mb or megabytes <= FULL * machine.free_mb
