"""Which WebUI draws models of rectified flow, as data (no torch)."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.config.choices.network_hosts import HOSTS
from lora_trainer.messages import Message, say
from lora_trainer.models.prediction_kinds import FLOW

NEO, NEO_FAMILY, NEO_WORD = "neo", "sdxl", "rectified"
"""Forge Neo draws SDXL so where the checkpoint's path holds this word. A1111 and Forge know only epsilon and v for these families; reForge
draws it where its script is set so for each picture, and previews are drawn without scripts."""


def flow_not_drawn(title: str) -> Message:
    """What to expect where a WebUI samples such a model as if it predicted the noise."""
    return say(
        "The WebUI would draw {title}, a model of rectified flow, as one that predicts the noise: previews are drawn by the trainer's own "
        "sampler, and the WebUI's pictures of the model and of the network are wrong. Forge Neo draws SDXL right where the word "
        '"rectified" is in the path of the checkpoint, reForge where "Advanced Model Sampling" is on and set to SD3; AUTOMATIC1111 and '
        "Forge do not.",
        title=title,
    )


def drawn_as_flow(title: str, prediction: str) -> Message:
    """What to expect where a WebUI samples another model as one of rectified flow."""
    return say(
        'The WebUI draws {title} as a model of rectified flow, because of the word "rectified" in its path, and it is trained as one that '
        "predicts {kind}: previews are drawn by the trainer's own sampler. Rename the file or its folder to have the WebUI draw it right.",
        title=title,
        kind=prediction,
    )


def prediction_warning(prediction: str, family: str, checkpoint: Path, host: str) -> Message | None:
    """The warning before a model is trained in a WebUI that cannot draw it; None where it can, and outside WebUIs."""
    if prediction != FLOW or host not in HOSTS:
        return None
    if host == NEO and family == NEO_FAMILY and NEO_WORD in str(checkpoint).lower():
        return None
    return flow_not_drawn(checkpoint.stem)
