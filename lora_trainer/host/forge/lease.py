"""The loan in Forge: its loaded model, shared and read-only, or the checkpoint's file where its weights cannot be shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_trainer.errors import ModelError
from lora_trainer.host.a1111.lease import A1111Lease, Ways
from lora_trainer.host.a1111.preview import Drawing
from lora_trainer.host.a1111.queue import Turn
from lora_trainer.host.base import MODEL_FIELD
from lora_trainer.host.forge import engine
from lora_trainer.host.forge import model as held
from lora_trainer.messages import Message, say
from lora_trainer.models import detect
from lora_trainer.models.source import FileSource, ModelSource

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_CHOSEN = ModelError("the WebUI has no checkpoint loaded.", path=MODEL_FIELD, fix="Choose a checkpoint at the top of the page.")


@contextmanager
def lend(checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool]) -> Iterator[ForgeLease]:
    """Lends the model of `checkpoint` with that VAE; the user's choice when they are None. Loads it where it is not loaded yet.

    Refuses what cannot be trained before anything is touched. When it ends, by whatever way, the model is clean, the queue is free,
    and what the user has chosen is loaded again where something was loaded before.
    """
    from modules import call_queue

    inspect(engine.choice()["checkpoint_info"] if checkpoint is None else checkpoint)
    turn = Turn(call_queue.queue_lock)
    turn.take()
    empty = engine.loaded() is None
    try:
        yield _begin(turn, checkpoint, vae_file, lets_through)
    finally:
        if turn.held:
            give_back(turn, _leave_as_it_is if empty else _load_choice)


def inspect(info: Any) -> detect.ModelFacts:
    """What the file of a checkpoint tells. Raises ModelError when it cannot be trained, or none is chosen."""
    if info is None:
        raise NOT_CHOSEN
    return detect.inspect(Path(info.filename))


def _begin(turn: Turn, checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool]) -> ForgeLease:
    from modules import shared

    chosen = engine.choice()
    wanted = chosen if checkpoint is None else chosen | {"checkpoint_info": checkpoint}
    parameters = engine.with_vae(wanted, vae_file)
    engine.load(parameters)
    sd_model = engine.loaded()
    engine.clean(sd_model)
    odd = held.odd_format(sd_model)
    pin = held.ForgePin(
        checkpoint=sd_model.sd_checkpoint_info,
        vae_file=engine.vae_of(parameters),
        clip_skip=int(shared.opts.CLIP_stop_at_last_layers),
        vae_dtype=next(sd_model.forge_objects_original.vae.first_stage_model.parameters()).dtype,
        weights={} if odd else held.weights_of(sd_model),
        parameters=parameters,
    )
    return ForgeLease(turn, pin, _file_source(pin) if odd else held.live_source(sd_model), lets_through, odd)


def _file_source(pin: held.ForgePin) -> FileSource:
    engine.unload()
    return FileSource(Path(pin.checkpoint.filename), None if pin.vae_file is None else Path(pin.vae_file))


def _leave_as_it_is() -> None:
    """Forge loads by itself when somebody generates."""


def _load_choice() -> None:
    engine.load(engine.choice())


def give_back(turn: Turn, last: Callable[[], None] = _leave_as_it_is) -> None:
    """Leaves a clean model, does the `last` thing and frees the queue.

    What does not work is told in the host's console and done anew at the next generation: it is no failure of the training.
    """
    from modules import devices, errors, sd_models

    try:
        if engine.loaded() is not None:
            engine.clean(engine.loaded())
        last()
    except (ModelError, RuntimeError) as error:
        sd_models.model_data.forge_hash = ""
        errors.report(f"LoRA Trainer: {error}", exc_info=True)
    finally:
        devices.torch_gc()
        turn.give()


class ForgeDrawing(Drawing):
    """Forge loads what its loading parameters say, whatever the options are."""

    def overrides(self, pin: Any) -> dict[str, Any]:
        """None: the checkpoint is pinned otherwise."""
        return {}

    def images(self, pin: Any, p: Any) -> list[Image]:
        """Drawn in the host's main thread."""
        from modules import processing

        with engine.pinned(pin.parameters):
            images = list(engine.on_main_thread(lambda: processing.process_images(p)).images)
        if not engine.is_loaded(pin.parameters):
            raise RuntimeError("another checkpoint was loaded meanwhile")
        return images

    def take_off(self) -> None:
        """As after every generation."""
        if engine.loaded() is not None:
            engine.clean(engine.loaded())


class ForgeLease(A1111Lease):
    """See host.base.Lease. `odd`: the number format for whose sake the file was read; "" when the model is shared."""

    _pin: held.ForgePin

    def __init__(self, turn: Turn, pin: held.ForgePin, source: ModelSource, lets_through: Callable[[], bool], odd: str) -> None:
        super().__init__(turn, pin, source, lets_through, Ways(held, drawing=ForgeDrawing()))
        self.notes = (told(odd),) if odd else ()

    @staticmethod
    def _device() -> torch.device:
        return torch.device(engine.memory_management().get_torch_device())

    def _give_back(self) -> None:
        give_back(self._turn)

    def _choice_differs(self) -> bool:
        return str(engine.choice()) != str(self._pin.parameters)

    def _renew(self) -> None:
        if isinstance(self.source, FileSource):
            engine.unload()
        elif not held.same_storages(self.source, engine.loaded()):
            self.source = held.live_source(engine.loaded())
            self.device = self._device()

    def _weights(self) -> dict[str, int]:
        return held.weights_of(engine.loaded(), self._pin.vae_dtype) if self._pin.weights else {}

    def _clean(self) -> None:
        engine.load(self._pin.parameters)
        engine.clean(engine.loaded())

    def _clean_thoroughly(self) -> None:
        engine.unload()
        self._clean()

    def _read_anew(self) -> None:
        engine.load(self._pin.parameters, anew=True)
        self._clean()


def told(odd: str) -> Message:
    """Why the file is read."""
    return say(
        "The WebUI holds the model in {format}, which nothing can be learned through: the checkpoint's file is read instead.", format=odd
    )
