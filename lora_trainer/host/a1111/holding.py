"""How the host holds its model (whole, in pieces, in a format that nothing can be learned through), and what it adds to it."""

from __future__ import annotations

from typing import Any

import torch

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say

SHARED = (torch.float32, torch.float16, torch.bfloat16)
NONE = "None"


def why_apart(sd_model: Any) -> Message | None:
    """Why the checkpoint's file is read instead of sharing the host's weights; None where they are shared."""
    if in_pieces(sd_model):
        return say("The WebUI runs with {flag}, which moves the model in pieces: the checkpoint's file is read instead.", flag=_flag())
    modules = (sd_model.model.diffusion_model, sd_model.cond_stage_model, sd_model.first_stage_model)
    formats = (parameter.dtype for module in modules for parameter in module.parameters() if parameter.is_floating_point())
    odd = next((dtype for dtype in formats if dtype not in SHARED), None)
    return None if odd is None else in_odd_format(str(odd).removeprefix("torch."))


def in_odd_format(name: str) -> Message:
    """Why the file is read where the weights have such a number format."""
    return say(
        "The WebUI holds the model in {format}, which nothing can be learned through: the checkpoint's file is read instead.", format=name
    )


def in_pieces(sd_model: Any) -> bool:
    """Whether the host moves its model to the device module by module."""
    return bool(getattr(sd_model, "lowvram", False))


def _flag() -> str:
    from modules import shared

    flags = shared.cmd_opts
    return "--lowvram" if flags.lowvram else "--medvram" if flags.medvram else "--medvram-sdxl"


class Pieces:
    """The module that --medvram or --lowvram left on the device: taken off it for the time of a loan, and put back."""

    def __init__(self) -> None:
        self._before: Any = None

    def remember(self, sd_model: Any) -> None:
        """Frees the device of whatever is on it."""
        if in_pieces(sd_model):
            from modules import lowvram

            self._before = lowvram.module_in_gpu
            self.take_off(sd_model)

    @staticmethod
    def take_off(sd_model: Any) -> None:
        """Frees the device again after the host drew."""
        if in_pieces(sd_model):
            from modules import lowvram

            lowvram.send_everything_to_cpu()

    def put_back(self, sd_model: Any) -> None:
        """As it was, where the host still has that module."""
        module, self._before = self._before, None
        if module is None or not in_pieces(sd_model) or not any(known is module for known in sd_model.modules()):
            return
        from modules import devices, lowvram

        lowvram.send_everything_to_cpu()
        module.to(devices.device)
        lowvram.module_in_gpu = module


class Replacement:
    """A replacement of the U-Net (TensorRT and its like): off for the time of a loan, since nothing can be learned through it."""

    def __init__(self) -> None:
        self.name = ""

    def remember(self) -> None:
        """Puts the model's own U-Net in its place, and back on the device."""
        from modules import sd_unet

        option = sd_unet.current_unet_option
        self.name = "" if option is None else str(option.label)
        self.take_off()

    @staticmethod
    def take_off() -> None:
        """Again, after somebody's picture put it on."""
        from modules import sd_unet

        sd_unet.apply_unet(NONE)

    def put_back(self) -> None:
        """What the user's setting means, where something was active. Raises ModelError."""
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
    """What is on in the host beside its model, and what becomes of it."""
    from modules import shared

    found = []
    if replacement:
        found.append(
            say(
                'The U-Net replacement "{name}" is off until training ends: the network learns with the checkpoint\'s own U-Net.',
                name=replacement,
            )
        )
    if (hypernetwork := str(getattr(shared.opts, "sd_hypernetwork", NONE))) != NONE:
        found.append(
            say(
                'The hypernetwork "{name}" is on: the network learns without it, and previews are drawn with it, as txt2img draws them.',
                name=hypernetwork,
            )
        )
    if (network := str(getattr(shared.opts, "sd_lora", NONE))) != NONE:
        found.append(
            say(
                'The network "{name}" is added to every prompt: training goes on without it, and previews are drawn with it, as txt2img '
                "draws them.",
                name=network,
            )
        )
    return tuple(found)
