"""The loan in reForge: loaded as in A1111, held and cleaned as in Forge. This module serves as `Ways.model`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.host.a1111 import lease as a1111
from lora_trainer.host.a1111.holding import in_odd_format
from lora_trainer.host.a1111.preview import Drawing
from lora_trainer.host.forge import engine
from lora_trainer.host.forge.lease import inspect
from lora_trainer.host.forge.model import known, live_source, notes, odd_format, same_storages, weights_of
from lora_trainer.messages import Message
from lora_trainer.models.detection import detect

__all__ = ["lend", "live_source", "same_storages", "weights_of", "wipe"]


class ReForgeDrawing(Drawing):
    """Its pictures come from A1111's function; only a network is taken off in another way."""

    def images(self, pin: Any, p: Any) -> list[Any]:
        """Drawn in the host's main thread."""
        from modules import processing

        return list(engine.on_main_thread(lambda: processing.process_images(p)).images)

    def take_off(self) -> None:
        """As after every generation."""
        wipe(engine.loaded())


def wipe(sd_model: Any, *, thoroughly: bool = False) -> None:
    """Everything off that generations leave on a model; `thoroughly`: after it was moved off the device whole.

    Where the file is read instead, the device's memory is free afterwards.
    """
    if thoroughly:
        engine.unload()
    engine.clean(sd_model)
    if odd_format(sd_model):
        engine.unload()


@contextmanager
def lend(
    checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], flags: detect.Flags | None = None
) -> Iterator[a1111.A1111Lease]:
    """As in A1111; from the checkpoint's file where its weights cannot be shared."""
    ways = a1111.HostVariant(sys.modules[__name__], refusal, ReForgeDrawing(), why_apart, known)
    with a1111.lend(checkpoint, vae_file, lets_through, ways, flags) as lease:
        lease.notes = (*lease.notes, *notes(lease.source, lease.device))
        yield lease


def why_apart(sd_model: Any) -> Message | None:
    """Why the checkpoint's file is read; None where its weights are shared."""
    odd = odd_format(engine.loaded())
    return in_odd_format(odd) if odd else None


def refusal(sd_model: Any) -> TrainerError | None:
    """Why this checkpoint cannot be trained on, by its file; None when it can."""
    try:
        inspect(None if sd_model is None else sd_model.sd_checkpoint_info)
    except ModelError as error:
        return error
    return None
