"""What a run does to need less memory: blocks that are computed again, parts that lie elsewhere while nobody needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_trainer.models.source import FileSource
from lora_trainer.train import activations
from lora_trainer.train.activations import Choice, Numbers
from lora_trainer.train.checkpointing import Checkpointing, blocks_of, names, texts_of

if TYPE_CHECKING:
    from lora_trainer.train.setup import Trainer

GB = 2**30


def checkpointing(trainer: Trainer) -> Checkpointing | None:
    """As the config wants it: none, everything, or as much as the budget asks for."""
    if not trainer.config.memory.gradient_checkpointing:
        return None
    return Checkpointing(trainer.bundle.unet, texts_of(trainer.bundle), names(kept(trainer)))


def half_budget_gb(trainer: Trainer) -> float:
    """GB that are half of what the largest batch keeps when nothing is computed again."""
    blocks, rest = blocks_of_largest(trainer)
    return max(0.001, round(activations.keep_all(blocks, rest).kept / 2 / GB, 3))


def kept(trainer: Trainer) -> Choice:
    """What becomes of each block with the settings as they are."""
    memory = trainer.config.memory
    blocks, rest = blocks_of_largest(trainer)
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest)
    budget = memory.checkpointing_budget_gb * GB
    return activations.within(blocks, rest, budget) if budget else activations.all_again(blocks, rest)


def blocks_of_largest(trainer: Trainer) -> tuple[list[activations.Block], float]:
    """Blocks and rest for the batch with most pixels."""
    most, pixels, pictures = trainer.config.memory.pictures_at_once, 0, 1
    for record in trainer.pictures.trained:
        width, height = record.bucket or (0, 0)
        together = trainer.pictures.batch_sizes[record.dataset]
        together = min(together, most) if most else together
        if width * height * together > pixels * pictures:
            pixels, pictures = width * height, together
    size = torch.finfo(trainer.precision.base).bits // 8
    return blocks_of(
        trainer.bundle,
        pixels=pixels,
        pictures=pictures,
        rank=trainer.config.network.dim,
        words="text_encoder" in trainer.adapter.parameters(),
        numbers=Numbers(size, 4 if trainer.device.type == "cuda" else size),
    )


def spare(trainer: Trainer) -> bool:
    """Puts what no step needs into ordinary memory; False when there was nothing.

    Only parts that are the trainer's own: what a host lends stays where it is. They come back by themselves when they are used.
    """
    if trainer.device.type == "cpu" or not isinstance(trainer.source, FileSource):
        return False
    unused = [trainer.bundle.vae] if trainer.config.data.cache_latents else []
    unused += [] if trainer.captions.trained else trainer.bundle.text_encoders
    moved = [part for part in unused if _lies_on(part, trainer.device)]
    with torch.inference_mode(False):
        for part in moved:
            part.to("cpu")
    return bool(moved)


def ready(part: nn.Module, device: torch.device) -> None:
    """The part on the device, where `spare` has moved it away."""
    if not _lies_on(part, device):
        with torch.inference_mode(False):
            part.to(device)


def _lies_on(part: nn.Module, device: torch.device) -> bool:
    return next(part.parameters()).device.type == device.type
