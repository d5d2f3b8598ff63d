"""The memory ladder: what a card of a given size trains at once, for LoRA on Stable Diffusion 1.x (no torch)."""

from __future__ import annotations

import attrs

from lora_trainer.config.schema import TrainConfig
from lora_trainer.models.detect import ModelFacts
from lora_trainer.train.plan import make_plan
from lora_trainer.wizard.facts import GB, MachineFacts

FULL = 0.9
"""Share of the free memory that a plan may fill."""
SLACK_GB = 0.5
"""A card called 8 GB says 7.6 to 8."""
CPU_BATCH = 4
SMALL, LARGE = 512 * 512, 768 * 768


@attrs.frozen
class Rung:
    """A card of `gb`: pictures a step at 512 x 512 and at 768 x 768 (0: does not fit), each with or without recomputing."""

    gb: float
    batch: int
    checkpointing: bool
    large_batch: int
    large_checkpointing: bool
    text_encoder: bool = True
    rank: int = 1024


LADDER = (
    Rung(4, 1, True, 0, True, text_encoder=False, rank=8),
    Rung(6, 2, True, 1, True, text_encoder=False),
    Rung(8, 2, False, 2, True),
    Rung(10, 4, False, 2, True),
    Rung(12, 6, False, 3, False),
    Rung(16, 8, False, 4, False),
    Rung(24, 8, False, 6, False),
    Rung(32, 16, False, 12, False),
)


@attrs.frozen
class Limits:
    """What the memory allows: pictures a step, whether with recomputing, whether the text encoder is trained, largest rank."""

    batch: int
    checkpointing: bool
    text_encoder: bool
    rank: int


def rung(machine: MachineFacts) -> Rung:
    """The highest rung that the card reaches; the lowest for a smaller card."""
    reached = [rung for rung in LADDER if rung.gb <= machine.total_mb / GB + SLACK_GB]
    return reached[-1] if reached else LADDER[0]


def limits(machine: MachineFacts, pixels: int) -> Limits:
    """The ladder's answer for pictures of this many pixels. Without a GPU more pictures a step save no time."""
    if machine.on_cpu:
        return Limits(CPU_BATCH, False, True, 1024)
    here = rung(machine)
    if pixels <= SMALL:
        return Limits(here.batch, here.checkpointing, here.text_encoder, here.rank)
    batch = max(1, int(here.large_batch * min(1.0, LARGE / pixels)))
    return Limits(batch, here.large_checkpointing or pixels > LARGE, here.text_encoder, here.rank)


def needed_mb(config: TrainConfig, model: ModelFacts | None, machine: MachineFacts) -> float:
    """The plan's estimate for this config."""
    return make_plan(config, (), model, machine.for_plan()).needed_mb


def fits(megabytes: float, machine: MachineFacts) -> bool:
    """Whether that leaves a tenth of the free memory; where the memory is unknown everything fits."""
    return not machine.free_mb or megabytes <= FULL * machine.free_mb
