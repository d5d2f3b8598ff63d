"""Having a checkpoint and a VAE loaded by the host, without touching the user's choice in its options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from lora_trainer.errors import ModelError


def load_choice() -> None:
    """What the user's settings mean. Raises ModelError."""
    from modules import sd_models

    load_checkpoint(sd_models.select_checkpoint())
    load_vae(sd_models.model_data.sd_model, vae_of_choice())


def vae_of_choice() -> str | None:
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
