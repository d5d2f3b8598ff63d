"""How the host keeps its model (whole, offloaded in pieces, in a dtype without gradients), and what it adds to the model."""

from __future__ import annotations

from typing import Any

import torch

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say

SHARED = (torch.float32, torch.float16, torch.bfloat16)
NONE = "None"


def why_not_shared(sd_model: Any) -> Message | None:
    """Why the checkpoint's file is read instead of sharing the host's weights; None when they are shared."""
    if is_offloaded(sd_model):
        return say(
            "The WebUI runs with {flag}, which moves the model in pieces: the checkpoint's file is read instead.", flag=_offload_flag()
        )
    modules = (sd_model.model.diffusion_model, sd_model.cond_stage_model, sd_model.first_stage_model)
    formats = (parameter.dtype for module in modules for parameter in module.parameters() if parameter.is_floating_point())
    odd = next((dtype for dtype in formats if dtype not in SHARED), None)
    return None if odd is None else unsharable_format(str(odd).removeprefix("torch."))


def unsharable_format(name: str) -> Message:
    """The message that the file is read because the weights have this number format."""
    return say(
        "The WebUI keeps the model in {format}, which gradients cannot pass through: the checkpoint's file is read instead.", format=name
    )


def is_offloaded(sd_model: Any) -> bool:
    """Whether the host moves its model to the device module by module (--lowvram, --medvram)."""
    return bool(getattr(sd_model, "lowvram", False))


def _offload_flag() -> str:
    from modules import shared

    flags = shared.cmd_opts
    return "--lowvram" if flags.lowvram else "--medvram" if flags.medvram else "--medvram-sdxl"


class OffloadedModule:
    """The module that --medvram or --lowvram left on the device: moved off it for the duration of a lease, and put back."""

    def __init__(self) -> None:
        self._before: Any = None

    def remember(self, sd_model: Any) -> None:
        """Remembers the module on the device and moves it off."""
        if is_offloaded(sd_model):
            from modules import lowvram

            self._before = lowvram.module_in_gpu
            self.take_off(sd_model)

    @staticmethod
    def take_off(sd_model: Any) -> None:
        """Moves it off again after the host has generated."""
        if is_offloaded(sd_model):
            from modules import lowvram

            lowvram.send_everything_to_cpu()

    def put_back(self, sd_model: Any) -> None:
        """Moves the module back when the model still has it."""
        module, self._before = self._before, None
        if module is None or not is_offloaded(sd_model) or not any(known is module for known in sd_model.modules()):
            return
        from modules import devices, lowvram

        lowvram.send_everything_to_cpu()
        module.to(devices.device)
        lowvram.module_in_gpu = module


class UnetReplacement:
    """A replacement of the U-Net (such as TensorRT): off for the duration of a lease, since gradients cannot pass through it."""

    def __init__(self) -> None:
        self.name = ""

    def remember(self) -> None:
        """Remembers the active replacement and activates the model's own U-Net."""
        from modules import sd_unet

        option = sd_unet.current_unet_option
        self.name = "" if option is None else str(option.label)
        self.take_off()

    @staticmethod
    def take_off() -> None:
        """Activates the model's own U-Net, also after a generation has activated the replacement again."""
        from modules import sd_unet

        sd_unet.apply_unet(NONE)

    def put_back(self) -> None:
        """Applies the user's setting again when a replacement was active. Raises ModelError."""
        from modules import sd_unet

        name, self.name = self.name, ""
        if not name:
            return
        try:
            sd_unet.apply_unet()
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ModelError("the WebUI could not load {name} ({reason}).", name=name, reason=reason, fix="Choose another one.") from error


def notes(replacement: str) -> tuple[Message, ...]:
    """Messages about what is active in the host beside its model, and how training treats it."""
    from modules import shared

    messages = []
    if replacement:
        messages.append(
            say(
                'The U-Net replacement "{name}" is off until training ends: the network learns with the checkpoint\'s own U-Net.',
                name=replacement,
            )
        )
    if (hypernetwork := str(getattr(shared.opts, "sd_hypernetwork", NONE))) != NONE:
        messages.append(
            say(
                'The hypernetwork "{name}" is on: the network learns without it, and previews are drawn with it, as txt2img draws them.',
                name=hypernetwork,
            )
        )
    if (network := str(getattr(shared.opts, "sd_lora", NONE))) != NONE:
        messages.append(
            say(
                'The network "{name}" is added to every prompt: training goes on without it, and previews are drawn with it, as txt2img '
                "draws them.",
                name=network,
            )
        )
    return tuple(messages)
