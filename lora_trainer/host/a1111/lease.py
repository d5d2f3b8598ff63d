"""The loan: the host's loaded model, shared and read-only, and the host as it was when the loan ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch

from lora_trainer.errors import HostBusy, ModelError, TrainerError
from lora_trainer.files import file_sha256
from lora_trainer.host.a1111 import model as held
from lora_trainer.host.a1111.preview import Drawing, draw_preview
from lora_trainer.host.a1111.queue import Turn
from lora_trainer.host.a1111.refuse import refusal
from lora_trainer.host.base import PictureRequest
from lora_trainer.host.fingerprint import changed
from lora_trainer.messages import Message
from lora_trainer.models.source import LiveSource, ModelSource

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_trainer.control import Control

TO_RESUME = "Load {title} in the WebUI again, then press Resume."


@attrs.frozen
class Ways:
    """What differs between WebUIs that load checkpoints and VAEs as A1111 does.

    `model` has the functions of host.a1111.model: wipe, weights_of, live_source, same_storages.
    """

    model: Any = held
    refusal: Callable[[Any], TrainerError | None] = refusal
    drawing: Drawing = attrs.field(factory=Drawing)


@contextmanager
def lend(
    checkpoint: Any,
    vae_file: str | None,
    lets_through: Callable[[], bool],
    ways: Ways = Ways(),
) -> Iterator[A1111Lease]:
    """Lends the model of `checkpoint` with that VAE; the host's selection when they are None and "".

    Refuses what cannot be lent before anything is touched, and again with the queue in hand. When it ends, by whatever way,
    the model is clean, the user's own choice of checkpoint and VAE is loaded, and the queue is free.
    """
    from modules import call_queue, sd_models, shared

    _refuse_when(checkpoint is None, ways.refusal(shared.sd_model))
    turn = Turn(call_queue.queue_lock)
    turn.take()
    try:
        with sd_models.model_data.lock:  # the start's own loading is not in the queue
            pass
        yield _begin(turn, checkpoint, vae_file, lets_through, ways)
    finally:
        if turn.held:
            _give_back(turn, ways)


def _refuse_when(loaded_is_wanted: bool, problem: TrainerError | None) -> None:
    """Another checkpoint than the loaded one is looked at when it is there; how the host holds models is known before."""
    if problem is not None and (loaded_is_wanted or not isinstance(problem, ModelError)):
        raise problem


def _begin(turn: Turn, checkpoint: Any, vae_file: str | None, lets_through: Callable[[], bool], ways: Ways) -> A1111Lease:
    from modules import sd_models, shared

    load_checkpoint(checkpoint or sd_models.select_checkpoint())
    sd_model = sd_models.model_data.sd_model
    if (problem := ways.refusal(sd_model)) is not None:
        raise problem
    vae = sd_vae_of_choice() if vae_file == "" else vae_file
    load_vae(sd_model, vae)
    ways.model.wipe(sd_model)
    pin = held.Pin(
        checkpoint=sd_model.sd_checkpoint_info,
        vae_file=vae,
        clip_skip=int(shared.opts.CLIP_stop_at_last_layers),
        vae_dtype=next(sd_model.first_stage_model.parameters()).dtype,
        weights=ways.model.weights_of(sd_model),
    )
    return A1111Lease(turn, pin, ways.model.live_source(sd_model), lets_through, ways)


def _give_back(turn: Turn, ways: Ways) -> None:
    """Leaves a clean model, the one that the user has chosen (perhaps meanwhile), and frees the queue.

    A choice that cannot be loaded is told in the host's console: it is no failure of the training.
    """
    from modules import devices, errors, sd_models

    try:
        if sd_models.model_data.sd_model is not None:
            ways.model.wipe(sd_models.model_data.sd_model)
        _load_choice()
    except ModelError as error:
        errors.report(f"LoRA Trainer: {error}", exc_info=True)
    finally:
        devices.torch_gc()
        turn.give()


def _load_choice() -> None:
    from modules import sd_models

    load_checkpoint(sd_models.select_checkpoint())
    load_vae(sd_models.model_data.sd_model, sd_vae_of_choice())


def sd_vae_of_choice() -> str | None:
    """The VAE's file that the user's settings mean for the loaded checkpoint; None is the checkpoint's own."""
    from modules import sd_models, sd_vae

    return cast("str | None", sd_vae.resolve_vae(sd_models.model_data.sd_model.sd_checkpoint_info.filename).vae)


def load_checkpoint(info: Any, *, anew: bool = False) -> None:
    """Loads it unless it is loaded, without touching the user's choice in the options; moves it back onto the device.

    Raises ModelError. The host gives its old model up before it looks for the new one's file, so that is looked for first.
    """
    from modules import devices, sd_models

    sd_model = sd_models.model_data.sd_model
    if anew or sd_model is None or sd_model.sd_checkpoint_info.filename != info.filename:
        with _told(info.model_name, Path(info.filename)), sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=info, forced_reload=anew)
    elif next(sd_model.parameters()).device.type != torch.device(devices.device).type:
        sd_models.send_model_to_device(sd_model)


def load_vae(sd_model: Any, vae_file: str | None) -> None:
    """Loads that VAE unless it is loaded; None is the checkpoint's own. Raises ModelError."""
    from modules import sd_vae

    if sd_vae.loaded_vae_file != vae_file:
        path = Path(vae_file or sd_model.sd_checkpoint_info.filename)
        with _told(path.name, path):
            sd_vae.reload_vae_weights(sd_model, vae_file=vae_file)


@contextmanager
def _told(name: str, path: Path) -> Iterator[None]:
    """What the host raises while it loads a file, told with the file's name."""
    try:
        path.stat()
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ModelError("the WebUI could not load {name} ({reason}).", name=name, reason=reason, fix="Choose another one.") from error


class A1111Lease:
    """See host.base.Lease. What Forge does in another way stands in methods of its own."""

    def __init__(self, turn: Turn, pin: held.Pin, source: ModelSource, lets_through: Callable[[], bool], ways: Ways) -> None:
        self._ways = ways
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

    @staticmethod
    def _device() -> torch.device:
        from modules import devices

        return torch.device(devices.device)

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
        """Frees the queue; whatever waits runs, on the checkpoint and VAE that the user has chosen."""
        self._give_back()

    def _give_back(self) -> None:
        _give_back(self._turn, self._ways)

    def resume(self) -> ModelSource:
        """Waits for the queue, then has the lent model as it was."""
        self._turn.take()
        try:
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

    def _renew(self) -> None:
        """Another source where the host's memory is no longer the lent one."""
        from modules import sd_models

        sd_model = sd_models.model_data.sd_model
        if isinstance(self.source, LiveSource) and not self._ways.model.same_storages(self.source, sd_model):
            self.source = self._ways.model.live_source(sd_model)
            self.device = self._device()

    def _restore(self) -> list[str]:
        """Tries one means after the other; names of the tensors that differ in spite of them all."""
        different: list[str] = []
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

        load_checkpoint(self._pin.checkpoint)
        load_vae(sd_models.model_data.sd_model, self._pin.vae_file)
        self._ways.model.wipe(sd_models.model_data.sd_model)

    def _clean_thoroughly(self) -> None:
        from modules import sd_models

        self._ways.model.wipe(sd_models.model_data.sd_model, thoroughly=True)

    def _read_anew(self) -> None:
        from modules import devices

        devices.dtype_vae = self._pin.vae_dtype
        load_checkpoint(self._pin.checkpoint, anew=True)
        self._clean()
