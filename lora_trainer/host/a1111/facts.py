"""Facts of the loaded model: its family, its prediction type and how that was detected, its native size."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.choices.prediction_hosts import drawn_as_flow, flow_not_drawn
from lora_trainer.errors import ModelError
from lora_trainer.host.base import PictureRequest
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection import detect
from lora_trainer.models.detection.detect import Flags
from lora_trainer.models.detection.prediction_type import PredictionType, apply_flags
from lora_trainer.models.prediction_kinds import FLOW

ZERO_SNR_OPTION = "Zero Terminal SNR"


@attrs.frozen
class HostModelFacts:
    """`family` is the row's name in models/layout.py, `native_size` a side in pixels.

    `host_prediction` is the prediction type that the host samples with, `host_zero_snr` whether it uses zero terminal SNR by itself.
    """

    family: str
    prediction: PredictionType
    native_size: int
    host_prediction: str
    host_zero_snr: bool = False

    def with_flags(self, flags: Flags | None) -> HostModelFacts:
        """The facts with the config's flags (sd-scripts' names) applied. Raises ModelError for a flag that the model contradicts."""
        if flags is None:
            return self
        row = layout.row(self.family)
        prediction = apply_flags(self.prediction, row.v2, row.label, flags)
        other_size = prediction.kind != self.prediction.kind and self.native_size in (row.native_size, row.native_size_v)
        return attrs.evolve(self, prediction=prediction, native_size=row.size_for(prediction.kind) if other_size else self.native_size)


def from_model(sd_model: Any) -> HostModelFacts:
    """The facts of a model, from the host and from the checkpoint's file."""
    host_prediction = "v" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
    host_zero_snr = bool(getattr(sd_model, "ztsnr", False))  # only in versions after 1.10.1
    return from_checkpoint(sd_model.sd_checkpoint_info, family_of(sd_model), host_prediction, host_zero_snr=host_zero_snr)


def from_checkpoint(info: Any, family: str, host_prediction: str, *, host_zero_snr: bool) -> HostModelFacts:
    """The facts of a checkpoint that the host samples with in this way.

    Marks in the file take precedence: the host reads a yaml file beside it, and tests the model itself only for Stable Diffusion 2.
    """
    file = _inspect_file(Path(info.filename), str(getattr(info, "sha256", None) or ""))
    prediction = _combine(file.detected if file is not None else None, host_prediction, host_inspects=family == "sd2")
    if host_zero_snr and prediction.kind == "v":
        prediction = attrs.evolve(prediction, zero_terminal_snr=True)
    row, size = layout.row(family), file.native_size if file is not None else 0
    is_native = size in (0, row.native_size, row.native_size_v)
    return HostModelFacts(family, prediction, row.size_for(prediction.kind) if is_native else size, host_prediction, host_zero_snr)


def draws_alike(facts: HostModelFacts) -> bool:
    """Whether the host samples along the model's path: both along that of rectified flow, or neither."""
    return (facts.prediction.kind == FLOW) == (facts.host_prediction == FLOW)


def drawable(request: PictureRequest, facts: HostModelFacts | None) -> PictureRequest:
    """The request as the host can draw it: its DDIM knows no rectified flow, along which Euler takes the same steps as DDIM."""
    if facts is None or facts.prediction.kind != FLOW or request.sampler != "ddim":
        return request
    return attrs.evolve(request, sampler="euler")  # type: ignore[type-var]  # a protocol that only an attrs class fulfils


def notes(facts: HostModelFacts, title: str, flags: Flags | None = None) -> tuple[Message, ...]:
    """Messages for the user when the host samples the model with the wrong prediction type, without zero terminal SNR, or with another
    clip skip than the config's (`flags`)."""
    from modules import shared

    kind, messages = facts.prediction.kind, []
    if not draws_alike(facts):
        messages.append(flow_not_drawn(title) if kind == FLOW else drawn_as_flow(title, kind))
    elif facts.prediction.sure and facts.host_prediction != kind:
        messages.append(
            say(
                "The WebUI draws {title} as a model that predicts {wrong}, but it predicts {kind} ({because}): training uses that, "
                "the WebUI's pictures, previews included, do not. A yaml file beside the checkpoint corrects the WebUI.",
                title=title,
                wrong=facts.host_prediction,
                kind=kind,
                because=facts.prediction.reason,
            )
        )
    if facts.prediction.zero_terminal_snr and not facts.host_zero_snr and shared.opts.sd_noise_schedule != ZERO_SNR_OPTION:
        messages.append(
            say(
                "{title} was trained with zero terminal SNR, and the WebUI draws without it. Set its "
                '"Noise schedule for sampling" to "Zero Terminal SNR" to see the previews as the model is meant to draw.',
                title=title,
            )
        )
    trained = getattr(flags, "clip_skip", None)
    return (*messages, *(() if trained is None else _clip_skip_note(facts.family, trained, int(shared.opts.CLIP_stop_at_last_layers))))


def _clip_skip_note(family: str, trained: int, drawn: int) -> tuple[Message, ...]:
    """A message when a run of a Stable Diffusion 1 model reads its captions with another clip skip than the WebUI's pictures."""
    if family != "sd1" or trained == drawn:
        return ()
    message = say(
        "This run reads captions with clip skip {trained}, and so do its previews; the WebUI is set to draw with {drawn}. Set its "
        '"Clip skip" to {trained} when you use the network.',
        trained=trained,
        drawn=drawn,
    )
    return (message,)


def family_of(sd_model: Any) -> str:
    """The name of the model's row in models/layout.py."""
    return "sdxl" if getattr(sd_model, "is_sdxl", False) else "sd2" if getattr(sd_model, "is_sd2", False) else "sd1"


def _combine(from_file: PredictionType | None, host_prediction: str, *, host_inspects: bool) -> PredictionType:
    if from_file is not None and from_file.is_marked:
        return from_file
    if host_inspects:
        return PredictionType(host_prediction, say("the WebUI, which has asked the model itself"), is_marked=False)
    if from_file is None or host_prediction != "epsilon":
        return PredictionType(host_prediction, say("the WebUI's configuration of this checkpoint"), is_marked=host_prediction != "epsilon")
    return from_file


def _inspect_file(path: Path, sha256: str) -> detect.ModelFacts | None:
    """The file's facts; None when it is gone, or is not a complete checkpoint on its own."""
    return _inspect_cached(path, tuple(_mtime(file) for file in (path, path.with_suffix(".yaml"))), sha256)


@lru_cache(maxsize=4)
def _inspect_cached(path: Path, stamps: tuple[int, ...], sha256: str) -> detect.ModelFacts | None:
    try:
        return detect.inspect(path, sha256=sha256)
    except (ModelError, OSError):
        return None


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
