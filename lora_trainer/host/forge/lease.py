"""The loan in Forge: its loaded model, shared and read-only, or the checkpoint's file where its weights cannot be shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_trainer.errors import ModelError
from lora_trainer.host.a1111 import facts
from lora_trainer.host.a1111.holding import in_odd_format
from lora_trainer.host.a1111.lease import A1111Lease, HostVariant, file_source, shared_source
from lora_trainer.host.a1111.preview import Drawing
from lora_trainer.host.a1111.queue import Turn
from lora_trainer.host.base import MODEL_FIELD
from lora_trainer.host.forge import engine
from lora_trainer.host.forge import model as held
from lora_trainer.messages import Message, say
from lora_trainer.models.detection import detect
from lora_trainer.models.source import FileSource

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_CHOSEN = ModelError("the WebUI has no checkpoint loaded.", path=MODEL_FIELD, fix="Choose a checkpoint at the top of the page.")


@contextmanager
def lend(
    checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], flags: detect.Flags | None = None
) -> Iterator[ForgeLease]:
    """Lends the model of `checkpoint` with that VAE; the user's choice when they are None. Loads it where it is not loaded yet.

    Refuses what cannot be trained before anything is touched. When it ends, by whatever way, the model is clean, the queue is free,
    and what the user has chosen is loaded again where something was loaded before.
    """
    from modules import call_queue

    inspect(engine.choice()["checkpoint_info"] if checkpoint is None else checkpoint, flags)
    turn = Turn(call_queue.queue_lock)
    turn.take()
    empty = engine.loaded() is None
    try:
        yield _begin(turn, checkpoint, vae_file, lets_through, flags)
    finally:
        if turn.held:
            give_back(turn, _leave_as_it_is if empty else _load_choice)


def inspect(info: Any, flags: detect.Flags | None = None) -> detect.ModelFacts:
    """What the file of a checkpoint tells. Raises ModelError when it cannot be trained on, contradicts a flag, or none is chosen."""
    if info is None:
        raise NOT_CHOSEN
    path, sha256 = Path(info.filename), str(getattr(info, "sha256", None) or "")
    return detect.inspect(path, sha256=sha256) if flags is None else detect.inspect_with(path, flags, sha256=sha256)


def _begin(turn: Turn, checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], flags: detect.Flags | None) -> ForgeLease:
    from modules import shared

    chosen = engine.choice()
    wanted = chosen if checkpoint is None else chosen | {"checkpoint_info": checkpoint}
    parameters = engine.with_vae(wanted, vae_file)
    engine.load(parameters)
    sd_model = engine.loaded()
    engine.clean(sd_model)
    odd, known = held.odd_format(sd_model), held.known(sd_model).settled(flags)
    pin = held.ForgePin(
        checkpoint=sd_model.sd_checkpoint_info,
        vae_file=engine.vae_of(parameters),
        clip_skip=int(shared.opts.CLIP_stop_at_last_layers),
        vae_dtype=next(sd_model.forge_objects_original.vae.first_stage_model.parameters()).dtype,
        weights={} if odd else held.weights_of(sd_model),
        parameters=parameters,
    )
    ways = HostVariant(held, drawing=ForgeDrawing())
    source = file_source(pin, known) if odd else shared_source(sd_model, ways, known)
    lease = ForgeLease(turn, pin, source, lets_through, ways, known)
    told = _about_the_file(odd, pin) if odd else held.notes(source, lease.device)
    lease.notes = (*told, *facts.notes(known, lease.title))
    if odd:
        engine.unload()
    return lease


def _about_the_file(odd: str, pin: held.ForgePin) -> tuple[Message, ...]:
    others = ", ".join(Path(module).name for module in pin.parameters["additional_modules"] if module != pin.vae_file)
    left_out = say('Not read from "VAE / Text Encoder": {names}. The checkpoint\'s own text encoders are.', names=others)
    return (in_odd_format(odd), left_out) if others else (in_odd_format(odd),)


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
    """See host.base.Lease."""

    _pin: held.ForgePin

    @staticmethod
    def _device() -> torch.device:
        return torch.device(engine.memory_management().get_torch_device())

    @staticmethod
    def _attention() -> str:
        """By the name of the function that the host has chosen."""
        from backend import attention

        name = getattr(attention.attention_function, "__name__", "")
        return {"attention_xformers": "xformers", "attention_pytorch": "sdpa"}.get(name, "")

    def _give_back(self) -> None:
        give_back(self._turn)

    def _choice_differs(self) -> bool:
        return str(engine.choice()) != str(self._pin.parameters)

    def _renew(self) -> None:
        if isinstance(self.source, FileSource):
            engine.unload()
        elif not held.same_storages(self.source, engine.loaded()):
            self.source = shared_source(engine.loaded(), self._ways, self._known)
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
