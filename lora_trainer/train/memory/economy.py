"""What a run does to need less memory: blocks that are computed again, parts that lie elsewhere while nobody needs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from lora_trainer.config.schema import MemoryConfig
from lora_trainer.data.records import ImageRecord
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import Block, Choice
from lora_trainer.train.memory.checkpointing import Checkpointing, names, texts_of
from lora_trainer.train.step.precision import lies_on

GB = 2**30


def checkpointing(memory: MemoryConfig, bundle: ModelBundle, blocks: Sequence[Block], rest: float) -> Checkpointing | None:
    """As the config wants it: none, everything, or as much as the budget asks for. Blocks and rest are those of the largest batch."""
    if not memory.gradient_checkpointing:
        return None
    return Checkpointing(bundle.unet, texts_of(bundle), names(kept(memory, blocks, rest)))


def kept(memory: MemoryConfig, blocks: Sequence[Block], rest: float) -> Choice:
    """What becomes of each block with the settings as they are."""
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest)
    budget = memory.checkpointing_budget_gb * GB
    return activations.within(blocks, rest, budget) if budget else activations.all_again(blocks, rest)


def half_budget_gb(blocks: Sequence[Block], rest: float) -> float:
    """GB that are half of what the largest batch keeps when nothing is computed again."""
    return max(0.001, round(activations.keep_all(blocks, rest).kept / 2 / GB, 3))


def largest_batch(records: Iterable[ImageRecord], batch_sizes: Sequence[int], most: int) -> tuple[int, int]:
    """Pixels of a picture, and pictures, of the batch with most of both; at most `most` pictures at a time unless that is 0."""
    pixels, pictures = 0, 1
    for record in records:
        width, height = record.bucket or (0, 0)
        together = batch_sizes[record.dataset]
        together = min(together, most) if most else together
        if width * height * together > pixels * pictures:
            pixels, pictures = width * height, together
    return pixels, pictures


def put_away(parts: Iterable[nn.Module], device: torch.device) -> bool:
    """Takes parts off the device; False when none was there. They come back by themselves when they are used (`runtime.ready`)."""
    moved = [part for part in parts if lies_on(part, device)]
    with torch.inference_mode(False):
        for part in moved:
            part.to("cpu")
    return bool(moved)
