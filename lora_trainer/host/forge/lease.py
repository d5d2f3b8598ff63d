"""The lease in Forge: its loaded model, shared read-only, or the checkpoint's file where its weights cannot be shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_trainer.errors import ModelError
from lora_trainer.host.a1111 import facts
from lora_trainer.host.a1111.holding import unsharable_format
from lora_trainer.host.a1111.lease import A1111Lease, HostVariant, file_source, shared_source
from lora_trainer.host.a1111.preview import Drawing
from lora_trainer.host.a1111.queue import Turn
from lora_trainer.host.base import MODEL_FIELD
from lora_trainer.host.forge import capabilities, engine
from lora_trainer.host.forge import model as host_model
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection import detect
from lora_trainer.models.source import FileSource

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_CHOSEN = ModelError("the WebUI has no checkpoint loaded.", path=MODEL_FIELD, fix="Choose a checkpoint at the top of the page.")


@contextmanager
def lend(
    checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], flags: detect.Flags | None = None
) -> Iterator[ForgeLease]:
    """Lends the model of `checkpoint` with this VAE, the user's choice when they are None; loads it when it is not loaded.

    Refuses what cannot be trained before anything is touched. When it ends, in whatever way, the model is clean, the queue is free,
    and the user's choice is loaded again if a model was loaded before.
    """
    from modules import call_queue

    inspect(engine.chosen_parameters()["checkpoint_info"] if checkpoint is None else checkpoint, flags)
    turn = Turn(call_queue.queue_lock)
    turn.acquire()
    nothing_loaded = engine.loaded_model() is None
    try:
        yield _lend_model(turn, checkpoint, vae_file, lets_through, flags)
    finally:
        if turn.is_held:
            give_back(turn, _load_nothing if nothing_loaded else _load_choice)


def inspect(info: Any, flags: detect.Flags | None = None) -> detect.ModelFacts:
    """The facts of a checkpoint's file. Raises ModelError when it cannot be trained, contradicts a flag, or none is chosen."""
    if info is None:
        raise NOT_CHOSEN
    path, sha256 = Path(info.filename), str(getattr(info, "sha256", None) or "")
    model_facts = detect.inspect(path, sha256=sha256) if flags is None else detect.inspect_with_flags(path, flags, sha256=sha256)
    if model_facts.family not in capabilities.families():
        raise ModelError(
            "this WebUI does not load {label} models.",
            label=layout.row(model_facts.family).label,
            path=MODEL_FIELD,
            fix="Choose another checkpoint, or train this one on the command line.",
        )
    return model_facts


def _lend_model(
    turn: Turn, checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], flags: detect.Flags | None
) -> ForgeLease:
    from modules import shared

    chosen = engine.chosen_parameters()
    to_load = chosen if checkpoint is None else chosen | {"checkpoint_info": checkpoint}
    parameters = engine.with_vae(to_load, vae_file)
    engine.load(parameters)
    sd_model = engine.loaded_model()
    engine.clean(sd_model)
    number_format, model_facts = host_model.number_format_not_shared(sd_model), host_model.model_facts(sd_model).with_flags(flags)
    pin = host_model.ForgePin(
        checkpoint=sd_model.sd_checkpoint_info,
        vae_file=engine.vae_file_in(parameters),
        clip_skip=int(shared.opts.CLIP_stop_at_last_layers),
        vae_dtype=next(sd_model.forge_objects_original.vae.first_stage_model.parameters()).dtype,
        fingerprints={} if number_format else host_model.weight_fingerprints(sd_model),
        parameters=parameters,
    )
    variant = HostVariant(host_model, drawing=ForgeDrawing())
    source = file_source(pin, model_facts) if number_format else shared_source(sd_model, variant, model_facts)
    lease = ForgeLease(turn, pin, source, lets_through, variant, model_facts)
    source_notes = _file_notes(number_format, pin) if number_format else host_model.notes(source, lease.device)
    lease.notes = (*source_notes, *facts.notes(model_facts, lease.title, flags))
    if number_format:
        engine.unload()
    return lease


def _file_notes(number_format: str, pin: host_model.ForgePin) -> tuple[Message, ...]:
    others = ", ".join(Path(module).name for module in pin.parameters["additional_modules"] if module != pin.vae_file)
    left_out = say('Not read from "VAE / Text Encoder": {names}. The checkpoint\'s own text encoders are.', names=others)
    return (unsharable_format(number_format), left_out) if others else (unsharable_format(number_format),)


def _load_nothing() -> None:
    """Forge loads its model itself at the next generation."""


def _load_choice() -> None:
    engine.load(engine.chosen_parameters())


def give_back(turn: Turn, at_end: Callable[[], None] = _load_nothing) -> None:
    """Leaves a clean model, calls `at_end` and frees the queue.

    A failure is reported in the host's console, and the next generation loads its model again: training has not failed.
    """
    from modules import devices, errors, sd_models

    try:
        if engine.loaded_model() is not None:
            engine.clean(engine.loaded_model())
        at_end()
    except (ModelError, RuntimeError) as error:
        sd_models.model_data.forge_hash = ""
        errors.report(f"LoRA Trainer: {error}", exc_info=True)
    finally:
        devices.torch_gc()
        turn.release()


class ForgeDrawing(Drawing):
    """Forge loads its loading parameters, whatever the options are."""

    def option_overrides(self, pin: Any) -> dict[str, Any]:
        """The checkpoint is pinned by the loading parameters."""
        return capabilities.local_drawing()

    def draw(self, pin: Any, p: Any) -> list[Image]:
        """Runs the request in the host's main thread; returns its images."""
        from modules import processing

        with engine.pinned(pin.parameters):
            images = list(engine.on_main_thread(lambda: processing.process_images(p)).images)
        if not engine.is_loaded(pin.parameters):
            raise RuntimeError("another checkpoint was loaded meanwhile")
        return images

    def remove_network(self) -> None:
        """Cleans the model, as after every generation."""
        if engine.loaded_model() is not None:
            engine.clean(engine.loaded_model())


class ForgeLease(A1111Lease):
    """See host.base.Lease."""

    _pin: host_model.ForgePin

    @staticmethod
    def _device() -> torch.device:
        return torch.device(engine.memory_management().get_torch_device())

    @staticmethod
    def _attention() -> str:
        """From the name of the host's attention function."""
        from backend import attention

        name = getattr(attention.attention_function, "__name__", "")
        return {"attention_xformers": "xformers", "attention_pytorch": "sdpa"}.get(name, "")

    def _give_back(self) -> None:
        give_back(self._turn)

    def _choice_differs(self) -> bool:
        return str(engine.chosen_parameters()) != str(self._pin.parameters)

    def _renew_source(self) -> None:
        if isinstance(self.source, FileSource):
            engine.unload()
        elif not host_model.shares_memory(self.source, engine.loaded_model()):
            self.source = shared_source(engine.loaded_model(), self._variant, self._model_facts)
            self.device = self._device()

    def _fingerprints(self) -> dict[str, int]:
        return host_model.weight_fingerprints(engine.loaded_model(), self._pin.vae_dtype) if self._pin.fingerprints else {}

    def _clean(self) -> None:
        engine.load(self._pin.parameters)
        engine.clean(engine.loaded_model())

    def _clean_thoroughly(self) -> None:
        engine.unload()
        self._clean()

    def _reload(self) -> None:
        engine.load(self._pin.parameters, force=True)
        self._clean()
