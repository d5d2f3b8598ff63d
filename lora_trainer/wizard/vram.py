"""Memory tiers: the batch size that a card of a given size can train, for LoRA on each family (no torch)."""

from __future__ import annotations

import attrs

from lora_trainer.config.schema import TrainConfig
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.train.planning.plan import make_plan
from lora_trainer.wizard.facts import GB, MachineFacts

MAX_FILL = 0.9
"""Share of the free memory that a plan may use."""
SLACK_GB = 0.5
"""Cards sold as 8 GB report 7.6 to 8 GB."""
CPU_BATCH = 4


@attrs.frozen
class MemoryTier:
    """A card of `gb` GB: batch size at the small and at the large resolution (0: does not fit), each with or without checkpointing.

    `text_encoder`: whether it can be trained too; `rank`: the largest that fits.
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
    """The tiers of a family, lowest first, and the two resolutions (side in pixels) that they are for."""

    small: int
    large: int
    tiers: tuple[MemoryTier, ...]


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
"""The two text encoders (1.6 GB) stay frozen: training the U-Net alone is enough for subjects and styles."""
TIERS = {"sdxl": SDXL}


@attrs.frozen
class Limits:
    """What fits in memory: batch size, whether checkpointing is needed, whether the text encoder can be trained, largest rank."""

    batch: int
    checkpointing: bool
    text_encoder: bool
    rank: int


def memory_tiers(family: str) -> MemoryTiers:
    """The tiers of a family by its name; those of Stable Diffusion 1 for any other."""
    return TIERS.get(family, SD1)


def memory_tier(machine: MachineFacts, family: str = "sd1") -> MemoryTier:
    """The highest tier that the card reaches; the lowest for a smaller card."""
    tiers = memory_tiers(family).tiers
    reached = [memory_tier for memory_tier in tiers if memory_tier.gb <= machine.total_mb / GB + SLACK_GB]
    return reached[-1] if reached else tiers[0]


def limits(machine: MachineFacts, pixels: int, family: str = "sd1") -> Limits:
    """The limits for pictures of this many pixels. Without a GPU larger batches save no time."""
    here, sizes = memory_tier(machine, family), memory_tiers(family)
    if machine.on_cpu:
        return Limits(CPU_BATCH, False, sizes.tiers[-1].text_encoder, 1024)
    if pixels <= sizes.small**2:
        return Limits(here.batch, here.checkpointing, here.text_encoder, here.rank)
    batch = max(1, int(here.large_batch * min(1.0, sizes.large**2 / pixels)))
    return Limits(batch, here.large_checkpointing or pixels > sizes.large**2, here.text_encoder, here.rank)


def needed_mb(config: TrainConfig, model: ModelFacts | None, machine: MachineFacts) -> float:
    """The plan's memory estimate in MB for this config."""
    return make_plan(config, (), model, machine.to_machine()).needed_mb


def fits(megabytes: float, machine: MachineFacts) -> bool:
    """Whether that leaves a tenth of the free memory unused; where the memory is unknown, always true."""
    return not machine.free_mb or megabytes <= MAX_FILL * machine.free_mb
