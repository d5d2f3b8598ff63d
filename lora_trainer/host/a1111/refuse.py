"""Models that cannot be trained, refused by name before anything is touched."""

from __future__ import annotations

from typing import Any

from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.host.a1111 import facts, model
from lora_trainer.host.base import MODEL_FIELD
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import KINDS_BY_CHANNELS, TRAINABLE

OTHER_FAMILIES = {"is_sd3": say("a Stable Diffusion 3 model"), "is_ssd": say("an SSD-1B model")}
ENCODERS = {"sd1": ("transformer",), "sd2": ("model",), "sdxl": ("transformer", "model")}
"""Per family, the attributes of the host's wrappers that hold the text encoders."""


def refusal(sd_model: Any) -> TrainerError | None:
    """Why this model cannot be trained; None when it can."""
    if sd_model is None:
        return ModelError("the WebUI has no checkpoint loaded.", path=MODEL_FIELD, fix="Choose a checkpoint at the top of the page.")
    kind = _other_kind(sd_model)
    if kind is None:
        return None
    title = sd_model.sd_checkpoint_info.name_for_extra
    return ModelError("the loaded checkpoint {title} is {kind}.", title=title, kind=kind, path=MODEL_FIELD, fix=TRAINABLE)


def _other_kind(sd_model: Any) -> Message | None:
    """What the model is when it is not a plain model of a supported family; else None."""
    for flag, words in OTHER_FAMILIES.items():
        if getattr(sd_model, flag, False):
            return words
    channels = sd_model.model.diffusion_model.in_channels
    if channels not in layout.LATENT_CHANNELS:
        return KINDS_BY_CHANNELS.get(channels) or say("a model with {count} input channels", count=channels)
    if getattr(sd_model, "embedder", None) is not None:
        return say("an unCLIP model")
    family = facts.family_of(sd_model)
    attributes = tuple(
        name for wrapper in model.encoder_wrappers(sd_model) for name in ("transformer", "model") if hasattr(wrapper.wrapped, name)
    )
    if attributes != ENCODERS[family]:
        return say("an SDXL refiner") if family == "sdxl" else say("a model of a family that is not supported")
    return None
