"""Loading a checkpoint and a VAE in the host, without changing the user's choice in its options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from lora_trainer.errors import ModelError


def load_user_choice() -> None:
    """Loads the user's choice of checkpoint and VAE. Raises ModelError."""
    from modules import sd_models

    load_checkpoint(sd_models.select_checkpoint())
    load_vae(sd_models.model_data.sd_model, chosen_vae())


def chosen_vae() -> str | None:
    """The path of the VAE that the user's settings select for the loaded checkpoint; None is the checkpoint's own."""
    from modules import sd_models, sd_vae

    return cast("str | None", sd_vae.resolve_vae(sd_models.model_data.sd_model.sd_checkpoint_info.filename).vae)


def load_checkpoint(info: Any, *, force: bool = False) -> None:
    """Loads the checkpoint unless it is loaded (`force`: in any case), and moves it back to the device.

    Raises ModelError. The host drops its old model before it opens the new file, so the file is checked first.
    """
    from modules import devices, sd_models

    sd_model = sd_models.model_data.sd_model
    if force or sd_model is None or sd_model.sd_checkpoint_info.filename != info.filename:
        with _loading_errors(info.model_name, Path(info.filename)), sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=info, forced_reload=force)
    elif next(sd_model.parameters()).device.type != torch.device(devices.device).type:
        sd_models.send_model_to_device(sd_model)


def load_vae(sd_model: Any, vae_file: str | None) -> None:
    """Loads the VAE unless it is loaded; None is the checkpoint's own. Raises ModelError."""
    from modules import sd_vae

    if sd_vae.loaded_vae_file != vae_file:
        path = Path(vae_file or sd_model.sd_checkpoint_info.filename)
        with _loading_errors(path.name, path):
            sd_vae.reload_vae_weights(sd_model, vae_file=vae_file)


@contextmanager
def _loading_errors(name: str, path: Path) -> Iterator[None]:
    """Converts what the host raises while loading a file to a ModelError with the file's name."""
    try:
        path.stat()
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ModelError("the WebUI could not load {name} ({reason}).", name=name, reason=reason, fix="Choose another one.") from error
