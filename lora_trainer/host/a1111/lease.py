"""The loan: the host's loaded model, shared and read-only, and the host as it was when the loan ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from lora_trainer.errors import HostBusy, ModelError, TrainerError
from lora_trainer.files import file_sha256
from lora_trainer.host.a1111 import facts, holding
from lora_trainer.host.a1111 import model as held
from lora_trainer.host.a1111.loading import load_checkpoint, load_choice, load_vae, vae_of_choice
from lora_trainer.host.a1111.preview import Drawing, draw_preview
from lora_trainer.host.a1111.queue import Turn
from lora_trainer.host.a1111.refuse import refusal
from lora_trainer.host.base import PictureRequest
from lora_trainer.host.fingerprint import changed
from lora_trainer.messages import Message
from lora_trainer.models.detection import detect
from lora_trainer.models.source import FileSource, LiveSource, ModelSource

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_trainer.control import Control

TO_RESUME = "Load {title} in the WebUI again, then press Resume."


@attrs.frozen
class HostVariant:
    """What differs between WebUIs that load checkpoints and VAEs as A1111 does.

    `model` has the functions of host.a1111.model: wipe, weights_of, live_source, same_storages. `why_apart` says why the checkpoint's
    file is read instead of sharing the weights of a model; `known` what is known of it beside its source.
    """

    model: Any = held
    refusal: Callable[[Any], TrainerError | None] = refusal
    drawing: Drawing = attrs.field(factory=Drawing)
    why_apart: Callable[[Any], Message | None] = holding.why_apart
    known: Callable[[Any], facts.Known] | None = facts.of_model
    pieces: holding.Pieces = attrs.field(factory=holding.Pieces)
    replacement: holding.Replacement = attrs.field(factory=holding.Replacement)


@contextmanager
def lend(
    checkpoint: Any,
    vae_file: str | None,
    lets_through: Callable[[], bool],
    ways: HostVariant | None = None,
    flags: detect.Flags | None = None,
) -> Iterator[A1111Lease]:
    """Lends the model of `checkpoint` with that VAE; the host's selection when they are None and "". `flags` are the config's.

    Refuses what cannot be lent before anything is touched, and again with the queue in hand. When it ends, by whatever way,
    the model is clean, the user's own choice of checkpoint and VAE is loaded, and the queue is free.
    """
    from modules import call_queue, sd_models, shared

    ways = ways or HostVariant()
    _refuse_when(checkpoint is None, ways.refusal(shared.sd_model))
    if checkpoint is None and ways.known is not None:
        ways.known(shared.sd_model).settled(flags)
    turn = Turn(call_queue.queue_lock)
    turn.take()
    try:
        with sd_models.model_data.lock:  # the start's own loading is not in the queue
            pass
        yield _begin(turn, checkpoint, vae_file, lets_through, ways, flags)
    finally:
        if turn.held:
            _give_back(turn, ways)


def _refuse_when(loaded_is_wanted: bool, problem: TrainerError | None) -> None:
    """Another checkpoint than the loaded one is looked at when it is there; how the host holds models is known before."""
    if problem is not None and (loaded_is_wanted or not isinstance(problem, ModelError)):
        raise problem


def _begin(
    turn: Turn, checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], ways: HostVariant, flags: detect.Flags | None
) -> A1111Lease:
    from modules import sd_models, shared

    ways.replacement.remember()
    load_checkpoint(checkpoint or sd_models.select_checkpoint())
    sd_model = sd_models.model_data.sd_model
    if (problem := ways.refusal(sd_model)) is not None:
        raise problem
    vae = vae_of_choice() if vae_file == "" else vae_file
    load_vae(sd_model, vae)
    ways.model.wipe(sd_model)
    ways.pieces.remember(sd_model)
    apart, known = ways.why_apart(sd_model), None if ways.known is None else ways.known(sd_model).settled(flags)
    pin = held.Pin(
        checkpoint=sd_model.sd_checkpoint_info,
        vae_file=vae,
        clip_skip=int(shared.opts.CLIP_stop_at_last_layers),
        vae_dtype=next(sd_model.first_stage_model.parameters()).dtype,
        weights={} if apart else ways.model.weights_of(sd_model),
        fp8=getattr(shared.opts, "fp8_storage", None),
    )
    source = file_source(pin, known) if apart else shared_source(sd_model, ways, known)
    lease = A1111Lease(turn, pin, source, lets_through, ways, known)
    told = () if known is None else facts.notes(known, lease.title)
    lease.notes = (*([apart] if apart else []), *told, *holding.notes(ways.replacement.name))
    return lease


def shared_source(sd_model: Any, ways: HostVariant, known: facts.Known | None) -> ModelSource:
    """The host's own weights, with what is known of them beside."""
    source: LiveSource = ways.model.live_source(sd_model)
    if known is None:
        return source
    found = known.found
    return attrs.evolve(source, prediction=found.kind, zero_terminal_snr=found.zero_terminal_snr, sure=found.sure)


def file_source(pin: held.Pin, known: facts.Known | None) -> FileSource:
    """The checkpoint's file in place of the host's weights. Raises ModelError where it cannot be read without the host."""
    path, vae = Path(pin.checkpoint.filename), None if pin.vae_file is None else Path(pin.vae_file)
    detect.inspect(path)
    if known is None:
        return FileSource(path, vae)
    return FileSource(path, vae, known.found.kind if known.found.sure else None, known.found.zero_terminal_snr)


def _give_back(turn: Turn, ways: HostVariant) -> None:
    """Leaves a clean model, the one that the user has chosen (perhaps meanwhile), and frees the queue.

    A choice that cannot be loaded is told in the host's console: it is no failure of the training.
    """
    from modules import devices, errors, sd_models

    try:
        if sd_models.model_data.sd_model is not None:
            ways.model.wipe(sd_models.model_data.sd_model)
        load_choice()
        ways.pieces.put_back(sd_models.model_data.sd_model)
        ways.replacement.put_back()
    except ModelError as error:
        errors.report(f"LoRA Trainer: {error}", exc_info=True)
    finally:
        devices.torch_gc()
        turn.give()


class A1111Lease:
    """See host.base.Lease. What Forge does in another way stands in methods of its own."""

    def __init__(
        self,
        turn: Turn,
        pin: held.Pin,
        source: ModelSource,
        lets_through: Callable[[], bool],
        ways: HostVariant,
        known: facts.Known | None = None,
    ) -> None:
        self._ways = ways
        self._known = known
        self._turn = turn
        self._pin = pin
        self._lets_through = lets_through
        self.source: ModelSource = source
        self.device = self._device()
        self.own_previews = held.loaded_networks() is not None
        self.title: str = pin.checkpoint.model_name
        self.checkpoint = Path(pin.checkpoint.filename)
        self.clip_skip = pin.clip_skip
        self.vae_title = Path(pin.vae_file).name if pin.vae_file else ""
        self.vae = Path(pin.vae_file) if pin.vae_file else None
        self.notes: tuple[Message, ...] = ()
        self.attention = self._attention()

    @staticmethod
    def _device() -> torch.device:
        from modules import devices

        return torch.device(devices.device)

    @staticmethod
    def _attention() -> str:
        """By the name of the optimisation that the host has put on."""
        from modules import sd_hijack

        name = getattr(getattr(sd_hijack, "model_hijack", None), "optimization_method", None)
        return {"xformers": "xformers", "sdp": "sdpa", "sdp-no-mem": "sdpa"}.get(str(name), "")

    @property
    def sha256(self) -> str:
        """The host's own number where it keeps one."""
        if not self._pin.checkpoint.sha256:
            self._pin.checkpoint.sha256 = file_sha256(self.checkpoint)
        return str(self._pin.checkpoint.sha256)

    def preview(
        self, request: PictureRequest, write_weights: Callable[[Path], None] | None, weight: float, control: Control
    ) -> Image | None:
        """A picture as txt2img draws it, on the lent checkpoint whatever the user has chosen since."""
        try:
            return draw_preview(self._ways.drawing, self._pin, request, write_weights, weight, control)
        finally:
            self._take_back()

    def pause(self) -> None:
        """Frees the queue; whatever waits runs, on the checkpoint and VAE that the user has chosen.

        Nothing is kept hold of: a host that loads a model of another kind gets the memory of this one back.
        """
        if isinstance(self.source, LiveSource):
            self.source = self.source.without_tensors()
        self._give_back()

    def _give_back(self) -> None:
        _give_back(self._turn, self._ways)

    def resume(self) -> ModelSource:
        """Waits for the queue, then has the lent model as it was."""
        self._turn.take()
        try:
            self._remember()
            self._take_back()
        except BaseException:
            self._give_back()
            raise
        return self.source

    def breathe(self) -> bool:
        """Lets one waiting generation through, unless it would make the host load another model than the lent one."""
        from modules import devices

        if not self._lets_through() or not self._turn.waiting() or self._choice_differs():
            return False
        devices.torch_gc()
        self._turn.let_one_through()
        self._take_back()
        return True

    def _choice_differs(self) -> bool:
        from modules import sd_models, sd_vae, shared

        option = shared.opts.sd_model_checkpoint  # reForge has none until somebody chooses
        chosen = sd_models.checkpoint_aliases.get(option) if option else sd_models.select_checkpoint()
        if chosen is None or chosen.filename != self._pin.checkpoint.filename:
            return True
        if getattr(shared.opts, "fp8_storage", None) != self._pin.fp8:
            return True
        return bool(sd_vae.resolve_vae(chosen.filename).vae != self._pin.vae_file)

    def _take_back(self) -> None:
        """The lent model, loaded, clean and bit for bit as it was; read from its file when something has changed it."""
        try:
            different = self._restore()
        except ModelError as error:
            reason = error.problems[0].message
            raise HostBusy("training cannot go on: {reason}", reason=reason, title=self.title, fix=TO_RESUME) from error
        if different:
            raise HostBusy(
                "the checkpoint {title} is not what it was when training began ({count} tensors differ, the first is {name}).",
                title=self.title,
                count=len(different),
                name=different[0],
                fix=TO_RESUME,
            )
        self._renew()

    def _remember(self) -> None:
        """What is on beside the model, and where its pieces are, when the turn begins anew."""
        from modules import sd_models

        self._ways.replacement.remember()
        self._ways.pieces.remember(sd_models.model_data.sd_model)

    def _renew(self) -> None:
        """Another source where the host's memory is no longer the lent one."""
        from modules import sd_models

        sd_model = sd_models.model_data.sd_model
        if isinstance(self.source, LiveSource) and not self._ways.model.same_storages(self.source, sd_model):
            self.source = shared_source(sd_model, self._ways, self._known)
            self.device = self._device()

    def _restore(self) -> list[str]:
        """Tries one means after the other; names of the tensors that differ in spite of them all.

        Where the file is read, nobody learns from the host's weights: they are cleaned, and not compared.
        """
        different: list[str] = []
        if not self._pin.weights:
            self._clean()
            if self._ways.model is held:  # a drawing that broke off leaves A1111's layers half done
                self._clean_thoroughly()
            return different
        for means in (self._clean, self._clean_thoroughly, self._read_anew):
            means()
            different = changed(self._pin.weights, self._weights())
            if not different:
                break
        return different

    def _weights(self) -> dict[str, int]:
        from modules import sd_models

        weights: dict[str, int] = self._ways.model.weights_of(sd_models.model_data.sd_model, self._pin.vae_dtype)
        return weights

    def _clean(self) -> None:
        from modules import sd_models

        self._ways.replacement.take_off()
        load_checkpoint(self._pin.checkpoint)
        load_vae(sd_models.model_data.sd_model, self._pin.vae_file)
        self._ways.model.wipe(sd_models.model_data.sd_model)
        self._ways.pieces.take_off(sd_models.model_data.sd_model)

    def _clean_thoroughly(self) -> None:
        from modules import sd_models

        self._ways.model.wipe(sd_models.model_data.sd_model, thoroughly=True)

    def _read_anew(self) -> None:
        from modules import devices

        devices.dtype_vae = self._pin.vae_dtype
        load_checkpoint(self._pin.checkpoint, anew=True)
        self._clean()
