"""What is known of the loaded model: its family, what it predicts and why, the size that it was made for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection import detect
from lora_trainer.models.detection.detect import Flags
from lora_trainer.models.detection.prediction_type import Prediction, settled

ZERO_SNR_OPTION = "Zero Terminal SNR"


@attrs.frozen
class Known:
    """`family` is its row's name in models/layout.py, `native_size` a side in pixels.

    `drawn_as` is what the host takes its prediction for, `drawn_zero` whether it draws this one with zero terminal SNR by itself.
    """

    family: str
    found: Prediction
    native_size: int
    drawn_as: str
    drawn_zero: bool = False

    def settled(self, flags: Flags | None) -> Known:
        """With sd-scripts' flags of the config. Raises ModelError for one that the model contradicts."""
        if flags is None:
            return self
        row = layout.row(self.family)
        found = settled(self.found, row.v2, row.label, flags.v2, flags.v_parameterization, flags.zero_terminal_snr)
        other_size = found.kind != self.found.kind and self.native_size in (row.native_size, row.native_size_v)
        return attrs.evolve(self, found=found, native_size=row.size_for(found.kind) if other_size else self.native_size)


def of_model(sd_model: Any) -> Known:
    """What the host and the checkpoint's file say together."""
    drawn_as = "v" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
    drawn_zero = bool(getattr(sd_model, "ztsnr", False))  # only versions after 1.10.1 know of it
    return of_checkpoint(sd_model.sd_checkpoint_info, family_of(sd_model), drawn_as, drawn_zero=drawn_zero)


def of_checkpoint(info: Any, family: str, drawn_as: str, *, drawn_zero: bool) -> Known:
    """The same of a checkpoint that the host draws with in this way.

    The file's own marks count most: the host heeds a yaml file beside it, and looks at the model itself for Stable Diffusion 2 only.
    """
    file = _looked_at(Path(info.filename), str(getattr(info, "sha256", None) or ""))
    found = _together(file.found if file is not None else None, drawn_as, asked=family == "sd2")
    if drawn_zero and found.kind == "v":
        found = attrs.evolve(found, zero_terminal_snr=True)
    row, size = layout.row(family), file.native_size if file is not None else 0
    usual = size in (0, row.native_size, row.native_size_v)
    return Known(family, found, row.size_for(found.kind) if usual else size, drawn_as, drawn_zero)


def notes(known: Known, title: str) -> tuple[Message, ...]:
    """What the user should know where the host draws the model as something else than it is."""
    from modules import shared

    kind, told = known.found.kind, []
    if known.found.sure and known.drawn_as != kind:
        told.append(
            say(
                "The WebUI draws {title} as a model that predicts {wrong}, but it predicts {kind} ({because}): training heeds that, the "
                "WebUI's pictures do not, previews among them. A yaml file beside the checkpoint tells the WebUI.",
                title=title,
                wrong=known.drawn_as,
                kind=kind,
                because=known.found.because,
            )
        )
    if known.found.zero_terminal_snr and not known.drawn_zero and shared.opts.sd_noise_schedule != ZERO_SNR_OPTION:
        told.append(
            say(
                "{title} was trained with zero terminal SNR, and the WebUI draws without it. Set its "
                '"Noise schedule for sampling" to "Zero Terminal SNR" to see the previews as the model means them.',
                title=title,
            )
        )
    return tuple(told)


def family_of(sd_model: Any) -> str:
    """Its row's name in models/layout.py."""
    return "sdxl" if getattr(sd_model, "is_sdxl", False) else "sd2" if getattr(sd_model, "is_sd2", False) else "sd1"


def _together(found: Prediction | None, drawn_as: str, *, asked: bool) -> Prediction:
    if found is not None and found.marked:
        return found
    if asked:
        return Prediction(drawn_as, say("the WebUI, which has asked the model itself"), marked=False)
    if found is None or drawn_as == "v":
        return Prediction(drawn_as, say("the WebUI's configuration of this checkpoint"), marked=drawn_as == "v")
    return found


def _looked_at(path: Path, sha256: str) -> detect.ModelFacts | None:
    """What the file tells; None where it is gone, or the host made a whole model of something that cannot be read alone."""
    return _read(path, tuple(_stamp(file) for file in (path, path.with_suffix(".yaml"))), sha256)


@lru_cache(maxsize=4)
def _read(path: Path, stamps: tuple[int, ...], sha256: str) -> detect.ModelFacts | None:
    try:
        return detect.inspect(path, sha256=sha256)
    except (ModelError, OSError):
        return None


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
