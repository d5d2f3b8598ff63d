"""What cannot be lent, said by its name before anything is touched."""

from __future__ import annotations

from typing import Any

import torch

from lora_trainer.errors import HostBusy, ModelError, TrainerError
from lora_trainer.host.base import MODEL_FIELD
from lora_trainer.messages import Message, say

SHARED = (torch.float32, torch.float16, torch.bfloat16)


def refusal(sd_model: Any) -> TrainerError | None:
    """Why this model, held in this way, cannot be trained on; None when it can."""
    if sd_model is None:
        return ModelError("the WebUI has no checkpoint loaded.", path=MODEL_FIELD, fix="Choose a checkpoint at the top of the page.")
    return _family(sd_model) or _holding(sd_model) or _additions()


def _family(sd_model: Any) -> TrainerError | None:
    title = sd_model.sd_checkpoint_info.name_for_extra
    kind = _kind(sd_model)
    if kind is None:
        return None
    return ModelError(
        "the loaded checkpoint {title} is {kind}.",
        title=title,
        kind=kind,
        path=MODEL_FIELD,
        fix="Choose a Stable Diffusion 1.x checkpoint: this version trains those.",
    )


def _kind(sd_model: Any) -> Message | None:
    """What it is when it is not a plain Stable Diffusion 1.x model."""
    flags = {
        "is_sd3": say("a Stable Diffusion 3 model"),
        "is_ssd": say("an SSD-1B model"),
        "is_sdxl": say("an SDXL model"),
        "is_sd2": say("a Stable Diffusion 2 model"),
    }
    for flag, words in flags.items():
        if getattr(sd_model, flag, False):
            return words
    if not getattr(sd_model, "is_sd1", False):
        return say("not a Stable Diffusion 1.x model")
    channels = sd_model.model.diffusion_model.in_channels
    special = {9: say("an inpainting model"), 8: say("an InstructPix2Pix model"), 5: say("a depth model"), 4: None}
    return special.get(channels, say("a model with {count} input channels", count=channels))


def _holding(sd_model: Any) -> TrainerError | None:
    from modules import devices, shared

    if getattr(sd_model, "lowvram", False):
        flag = "--lowvram" if shared.cmd_opts.lowvram else "--medvram"
        return HostBusy("the WebUI runs with {flag}, which moves the model in pieces.", flag=flag, fix="Start the WebUI without {flag}.")
    parameters = [
        *sd_model.model.diffusion_model.parameters(),
        *sd_model.cond_stage_model.parameters(),
        *sd_model.first_stage_model.parameters(),
    ]
    odd = next((parameter.dtype for parameter in parameters if parameter.is_floating_point() and parameter.dtype not in SHARED), None)
    if getattr(devices, "fp8", False) or (odd is not None and "float8" in str(odd)):
        return HostBusy("the WebUI holds the model in fp8.", fix='Set "FP8 weight" to "Disable" in Settings, Optimizations.')
    if odd is not None:
        return HostBusy(
            "the WebUI holds the model in {dtype}.", dtype=str(odd).removeprefix("torch."), fix="Start the WebUI with its usual precision."
        )
    return None


def _additions() -> TrainerError | None:
    from modules import sd_unet, shared

    unet = sd_unet.current_unet_option or sd_unet.get_unet_option()
    if unet is not None:
        return HostBusy(
            'the U-Net replacement "{name}" is active.', name=unet.label, fix='Set "SD Unet" to "None" in Settings, Stable Diffusion.'
        )
    chosen = str(getattr(shared.opts, "sd_hypernetwork", "None"))
    if chosen != "None":
        return HostBusy(
            'the hypernetwork "{name}" is active.',
            name=chosen,
            fix='Set "Add hypernetwork to prompt" to "None" in Settings, Extra Networks.',
        )
    if shared.loaded_hypernetworks:
        return HostBusy(
            'the hypernetwork "{name}" is still on from the last picture.',
            name=shared.loaded_hypernetworks[0].name,
            fix="Generate one picture without it.",
        )
    return None
