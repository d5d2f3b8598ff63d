"""Out of memory: memory is freed for a second try, and what cannot be done ends with the one thing to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from lora_trainer.config import effective
from lora_trainer.errors import OutOfMemory
from lora_trainer.gc_pause import collect_garbage
from lora_trainer.host.memory import empty_cache
from lora_trainer.host.out_of_memory import is_out_of_memory
from lora_trainer.train.memory.placement import CAPTIONS, LOADING, STEP

MIN_SIZE = 256
"""A smaller training size than this side is not suggested."""
Made = TypeVar("Made")


def free_cache(device: torch.device) -> None:
    """Collects garbage and returns the device's cached memory to the driver."""
    collect_garbage()
    empty_cache(device)


def out_of_memory(config: Any, step: int, reason: str, kind: str = STEP, *, everything_tried: bool = True) -> OutOfMemory:
    """The error that ends a run, with the one thing to change."""
    values: dict[str, Any] = {"step": step, "reason": reason}
    template = "memory ran out at step {step} ({reason})."
    if everything_tried:
        template = "memory ran out at step {step} ({reason}), and nothing is left that would save some without changing the result."
    width, height = effective.resolution(config)
    smaller = max(MIN_SIZE, int(max(width, height) * 0.75) // 64 * 64)
    if kind == STEP and not config.memory.gradient_checkpointing:
        fix, path = "Set memory.gradient_checkpointing to true.", "memory.gradient_checkpointing"
    elif kind not in (LOADING, CAPTIONS) and smaller < max(width, height):
        fix, path = "Set data.resolution to {size}.", "data.resolution"
    elif kind == STEP and effective.trains_text_encoder(config) and effective.trains_unet(config):
        fix, path = "Set optimizer.text_encoder_lr to 0.", "optimizer.text_encoder_lr"
    else:
        fix, path = "Close other programs that use memory.", ""
    return OutOfMemory(template, fix=fix, path=path, size=smaller, **values)


def retry_after_free(make: Callable[[], Made], config: Any, device: torch.device) -> Made:
    """Returns `make()`; calls it once more, after freeing memory, when memory ran out. Raises OutOfMemory."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error, device):
            raise
    free_cache(device)
    with raise_as_out_of_memory(lambda: config, kind=LOADING):
        return make()


@contextmanager
def raise_as_out_of_memory(config: Callable[[], Any], step: Callable[[], int] = lambda: 0, kind: str = STEP) -> Iterator[None]:
    """Turns failed allocations inside into OutOfMemory with the one thing to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise out_of_memory(config(), step(), reason, kind, everything_tried=False) from error
