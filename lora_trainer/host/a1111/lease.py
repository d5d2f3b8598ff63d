"""The lease: the host's loaded model, shared read-only, and the host restored when the lease ends."""

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
from lora_trainer.host.a1111 import model as host_model
from lora_trainer.host.a1111.loading import chosen_vae, load_checkpoint, load_user_choice, load_vae
from lora_trainer.host.a1111.preview import Drawing, draw_preview
from lora_trainer.host.a1111.queue import Turn
from lora_trainer.host.a1111.refuse import refusal
from lora_trainer.host.base import PictureRequest
from lora_trainer.host.fingerprint import changed_tensors
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

    `model` has the functions of host.a1111.model: wipe, weight_fingerprints, live_source, shares_memory. `why_not_shared` returns why
    the checkpoint's file is read instead of sharing the model's weights; `model_facts` the facts that its source does not show.
    """

    model: Any = host_model
    refusal: Callable[[Any], TrainerError | None] = refusal
    drawing: Drawing = attrs.field(factory=Drawing)
    why_not_shared: Callable[[Any], Message | None] = holding.why_not_shared
    model_facts: Callable[[Any], facts.HostModelFacts] | None = facts.from_model
    offloaded: holding.OffloadedModule = attrs.field(factory=holding.OffloadedModule)
    replacement: holding.UnetReplacement = attrs.field(factory=holding.UnetReplacement)


@contextmanager
def lend(
    checkpoint: Any,
    vae_file: str | None,
    lets_through: Callable[[], bool],
    variant: HostVariant | None = None,
    flags: detect.Flags | None = None,
) -> Iterator[A1111Lease]:
    """Lends the model of `checkpoint` with this VAE; the user's choice when they are None and "". `flags` are the config's.

    Refuses what cannot be lent before anything is touched, and again while holding the queue. When it ends, in whatever way,
    the model is clean, the user's choice of checkpoint and VAE is loaded, and the queue is free.
    """
    from modules import call_queue, sd_models, shared

    variant = variant or HostVariant()
    _refuse_when(checkpoint is None, variant.refusal(shared.sd_model))
    if checkpoint is None and variant.model_facts is not None:
        variant.model_facts(shared.sd_model).with_flags(flags)
    turn = Turn(call_queue.queue_lock)
    turn.acquire()
    try:
        with sd_models.model_data.lock:  # the host's loading at start-up is not in the queue
            pass
        yield _lend_model(turn, checkpoint, vae_file, lets_through, variant, flags)
    finally:
        if turn.is_held:
            _give_back(turn, variant)


def _refuse_when(loaded_is_wanted: bool, problem: TrainerError | None) -> None:
    """Raises the problem, unless it concerns a model that will be replaced: another checkpoint is checked once it is loaded."""
    if problem is not None and (loaded_is_wanted or not isinstance(problem, ModelError)):
        raise problem


def _lend_model(
    turn: Turn, checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], variant: HostVariant, flags: detect.Flags | None
) -> A1111Lease:
    from modules import sd_models, shared

    variant.replacement.remember()
    load_checkpoint(checkpoint or sd_models.select_checkpoint())
    sd_model = sd_models.model_data.sd_model
    if (problem := variant.refusal(sd_model)) is not None:
        raise problem
    vae = chosen_vae() if vae_file == "" else vae_file
    load_vae(sd_model, vae)
    variant.model.wipe(sd_model)
    variant.offloaded.remember(sd_model)
    not_shared, model_facts = (
        variant.why_not_shared(sd_model),
        None if variant.model_facts is None else variant.model_facts(sd_model).with_flags(flags),
    )
    pin = host_model.Pin(
        checkpoint=sd_model.sd_checkpoint_info,
        vae_file=vae,
        clip_skip=int(shared.opts.CLIP_stop_at_last_layers),
        vae_dtype=next(sd_model.first_stage_model.parameters()).dtype,
        fingerprints={} if not_shared else variant.model.weight_fingerprints(sd_model),
        fp8=getattr(shared.opts, "fp8_storage", None),
    )
    source = file_source(pin, model_facts) if not_shared else shared_source(sd_model, variant, model_facts)
    lease = A1111Lease(turn, pin, source, lets_through, variant, model_facts)
    fact_notes = () if model_facts is None else facts.notes(model_facts, lease.title, flags)
    lease.notes = (*([not_shared] if not_shared else []), *fact_notes, *holding.notes(variant.replacement.name))
    return lease


def shared_source(sd_model: Any, variant: HostVariant, model_facts: facts.HostModelFacts | None) -> ModelSource:
    """The host's own weights, with the prediction type from `model_facts`."""
    source: LiveSource = variant.model.live_source(sd_model)
    if model_facts is None:
        return source
    prediction = model_facts.prediction
    return attrs.evolve(source, prediction=prediction.kind, zero_terminal_snr=prediction.zero_terminal_snr, sure=prediction.sure)


def file_source(pin: host_model.Pin, model_facts: facts.HostModelFacts | None) -> FileSource:
    """The checkpoint's file in place of the host's weights. Raises ModelError when it cannot be read without the host."""
    path, vae = Path(pin.checkpoint.filename), None if pin.vae_file is None else Path(pin.vae_file)
    detect.inspect(path)
    if model_facts is None:
        return FileSource(path, vae)
    return FileSource(
        path, vae, model_facts.prediction.kind if model_facts.prediction.sure else None, model_facts.prediction.zero_terminal_snr
    )


def _give_back(turn: Turn, variant: HostVariant) -> None:
    """Leaves the user's (perhaps new) choice loaded and clean, and frees the queue.

    A choice that cannot be loaded is reported in the host's console: training has not failed.
    """
    from modules import devices, errors, sd_models

    try:
        if sd_models.model_data.sd_model is not None:
            variant.model.wipe(sd_models.model_data.sd_model)
        load_user_choice()
        variant.offloaded.put_back(sd_models.model_data.sd_model)
        variant.replacement.put_back()
    except ModelError as error:
        errors.report(f"LoRA Trainer: {error}", exc_info=True)
    finally:
        devices.torch_gc()
        turn.release()


class A1111Lease:
    """See host.base.Lease. What Forge does differently is in separate methods."""

    def __init__(
        self,
        turn: Turn,
        pin: host_model.Pin,
        source: ModelSource,
        lets_through: Callable[[], bool],
        variant: HostVariant,
        model_facts: facts.HostModelFacts | None = None,
    ) -> None:
        self._variant = variant
        self._model_facts = model_facts
        self._turn = turn
        self._pin = pin
        self._lets_through = lets_through
        self.source: ModelSource = source
        self.device = self._device()
        self.own_previews = host_model.networks_module() is not None and (model_facts is None or facts.draws_alike(model_facts))
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
        """From the name of the host's active optimization."""
        from modules import sd_hijack

        name = getattr(getattr(sd_hijack, "model_hijack", None), "optimization_method", None)
        return {"xformers": "xformers", "sdp": "sdpa", "sdp-no-mem": "sdpa"}.get(str(name), "")

    @property
    def sha256(self) -> str:
        """The host's own hash where it has one."""
        if not self._pin.checkpoint.sha256:
            self._pin.checkpoint.sha256 = file_sha256(self.checkpoint)
        return str(self._pin.checkpoint.sha256)

    def preview(
        self, request: PictureRequest, write_weights: Callable[[Path], None] | None, weight: float, control: Control
    ) -> Image | None:
        """An image as txt2img draws it, on the lent checkpoint whatever the user has chosen since."""
        try:
            return draw_preview(
                self._variant.drawing, self._pin, facts.drawable(request, self._model_facts), write_weights, weight, control
            )
        finally:
            self._recover_model()

    def pause(self) -> None:
        """Frees the queue; waiting generations run on the user's choice of checkpoint and VAE.

        Keeps no tensor: a host that loads a model of another family gets this one's memory back.
        """
        if isinstance(self.source, LiveSource):
            self.source = self.source.without_tensors()
        self._give_back()

    def _give_back(self) -> None:
        _give_back(self._turn, self._variant)

    def resume(self) -> ModelSource:
        """Waits for the queue, then restores the lent model as it was."""
        self._turn.acquire()
        try:
            self._remember()
            self._recover_model()
        except BaseException:
            self._give_back()
            raise
        return self.source

    def let_one_through(self, make_room: Callable[[], object] = lambda: None) -> bool:
        """Lets one waiting generation run, unless it would make the host load another model than the lent one."""
        from modules import devices

        if not self._lets_through() or not self._turn.waiting() or self._choice_differs():
            return False
        make_room()
        devices.torch_gc()
        self._turn.let_one_through()
        self._recover_model()
        return True

    def _choice_differs(self) -> bool:
        from modules import sd_models, sd_vae, shared

        option = shared.opts.sd_model_checkpoint  # reForge has none until the user chooses
        chosen = sd_models.checkpoint_aliases.get(option) if option else sd_models.select_checkpoint()
        if chosen is None or chosen.filename != self._pin.checkpoint.filename:
            return True
        if getattr(shared.opts, "fp8_storage", None) != self._pin.fp8:
            return True
        return bool(sd_vae.resolve_vae(chosen.filename).vae != self._pin.vae_file)

    def _recover_model(self) -> None:
        """Has the lent model loaded, clean and bit-identical; reloads its file when something has changed it.

        Raises HostBusy when it cannot be restored.
        """
        try:
            different = self._restore_weights()
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
        self._renew_source()

    def _remember(self) -> None:
        """Remembers the U-Net replacement and the module on the device again, after the queue was free."""
        from modules import sd_models

        self._variant.replacement.remember()
        self._variant.offloaded.remember(sd_models.model_data.sd_model)

    def _renew_source(self) -> None:
        """Replaces the source when the host's model is in other memory now."""
        from modules import sd_models

        sd_model = sd_models.model_data.sd_model
        if isinstance(self.source, LiveSource) and not self._variant.model.shares_memory(self.source, sd_model):
            self.source = shared_source(sd_model, self._variant, self._model_facts)
            self.device = self._device()

    def _restore_weights(self) -> list[str]:
        """Tries one way of restoring after the other; returns the names of the tensors that still differ after the last.

        When training reads the file, the host's weights are cleaned but not compared.
        """
        different: list[str] = []
        if not self._pin.fingerprints:
            self._clean()
            if self._variant.model is host_model:  # an interrupted generation leaves A1111's layers half merged
                self._clean_thoroughly()
            return different
        for attempt in (self._clean, self._clean_thoroughly, self._reload):
            attempt()
            different = changed_tensors(self._pin.fingerprints, self._fingerprints())
            if not different:
                break
        return different

    def _fingerprints(self) -> dict[str, int]:
        from modules import sd_models

        weights: dict[str, int] = self._variant.model.weight_fingerprints(sd_models.model_data.sd_model, self._pin.vae_dtype)
        return weights

    def _clean(self) -> None:
        from modules import sd_models

        self._variant.replacement.take_off()
        load_checkpoint(self._pin.checkpoint)
        load_vae(sd_models.model_data.sd_model, self._pin.vae_file)
        self._variant.model.wipe(sd_models.model_data.sd_model)
        self._variant.offloaded.take_off(sd_models.model_data.sd_model)

    def _clean_thoroughly(self) -> None:
        from modules import sd_models

        self._variant.model.wipe(sd_models.model_data.sd_model, thoroughly=True)

    def _reload(self) -> None:
        from modules import devices

        devices.dtype_vae = self._pin.vae_dtype
        load_checkpoint(self._pin.checkpoint, force=True)
        self._clean()
