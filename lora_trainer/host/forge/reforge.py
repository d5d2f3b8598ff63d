"""The lease in reForge: loaded as in A1111, kept and cleaned as in Forge. This module serves as `HostVariant.model`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.host.a1111 import lease as a1111
from lora_trainer.host.a1111.holding import unsharable_format
from lora_trainer.host.a1111.preview import Drawing
from lora_trainer.host.forge import engine
from lora_trainer.host.forge.lease import inspect
from lora_trainer.host.forge.model import live_source, model_facts, notes, number_format_not_shared, shares_memory, weight_fingerprints
from lora_trainer.messages import Message
from lora_trainer.models.detection import detect

__all__ = ["lend", "live_source", "shares_memory", "weight_fingerprints", "wipe"]


class ReForgeDrawing(Drawing):
    """As in A1111, but in the host's main thread, and networks are removed as in Forge."""

    def draw(self, pin: Any, p: Any) -> list[Any]:
        """Runs the request in the host's main thread; returns its images."""
        from modules import processing

        return list(engine.on_main_thread(lambda: processing.process_images(p)).images)

    def remove_network(self) -> None:
        """Cleans the model, as after every generation."""
        wipe(engine.loaded_model())


def wipe(sd_model: Any, *, thoroughly: bool = False) -> None:
    """Removes everything that generations leave on a model; `thoroughly`: moves it off the device before.

    When training reads the file instead, the device's memory is free afterwards.
    """
    if thoroughly:
        engine.unload()
    engine.clean(sd_model)
    if number_format_not_shared(sd_model):
        engine.unload()


@contextmanager
def lend(
    checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], flags: detect.Flags | None = None
) -> Iterator[a1111.A1111Lease]:
    """As in A1111; from the checkpoint's file when the weights cannot be shared."""
    variant = a1111.HostVariant(sys.modules[__name__], refusal, ReForgeDrawing(), why_not_shared, model_facts)
    with a1111.lend(checkpoint, vae_file, lets_through, variant, flags) as lease:
        lease.notes = (*lease.notes, *notes(lease.source, lease.device))
        yield lease


def why_not_shared(sd_model: Any) -> Message | None:
    """Why the checkpoint's file is read; None when the weights are shared."""
    number_format = number_format_not_shared(engine.loaded_model())
    return unsharable_format(number_format) if number_format else None


def refusal(sd_model: Any) -> TrainerError | None:
    """Why this checkpoint cannot be trained, from its file; None when it can."""
    try:
        inspect(None if sd_model is None else sd_model.sd_checkpoint_info)
    except ModelError as error:
        return error
    return None
