"""The host's model: reading its weights without copying them, and wiping off what generations leave on them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer.host.fingerprint import fingerprint
from lora_trainer.models.detect import ModelFacts
from lora_trainer.models.source import LiveSource


@attrs.frozen(eq=False)
class Pin:
    """What the loan is of: the host's entry of the checkpoint, the VAE's file (None: the checkpoint's own), the clip skip,
    the VAE's number format and every weight's fingerprint."""

    checkpoint: Any
    vae_file: str | None
    clip_skip: int
    vae_dtype: torch.dtype
    weights: dict[str, int]


def parts(sd_model: Any) -> dict[str, dict[str, Tensor]]:
    """Tensors of U-Net, VAE and text encoder under a checkpoint's names without prefix: the host's own storages."""
    text = sd_model.cond_stage_model.wrapped.transformer.state_dict()
    return {
        "unet": dict(sd_model.model.diffusion_model.state_dict()),
        "vae": dict(sd_model.first_stage_model.state_dict()),
        "text": {name.replace("token_embedding.wrapped.", "token_embedding."): tensor for name, tensor in text.items()},
    }


def flat(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all parts under "PART.NAME"."""
    return {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}


def weights_of(sd_model: Any, vae_dtype: torch.dtype | None = None) -> dict[str, int]:
    """The fingerprint of everything that is lent.

    The host may switch the VAE to 32 bits by itself (when it drew black pictures): `vae_dtype` is the format to compare in.
    """
    states = parts(sd_model)
    if vae_dtype is not None:
        states["vae"] = {name: tensor.to(vae_dtype) for name, tensor in states["vae"].items()}
    return fingerprint(flat(states))


def live_source(sd_model: Any) -> LiveSource:
    """The model as it is, shared. Its baked networks must be off (`restore_networks`)."""
    states = parts(sd_model)
    encoder = sd_model.cond_stage_model
    return LiveSource(
        unet_state=states["unet"],
        vae_state=states["vae"],
        text_state=states["text"],
        unet_heads=sd_model.model.diffusion_model.num_heads,
        text_heads=encoder.wrapped.transformer.config.num_attention_heads,
        tokenizer=encoder.tokenizer,
        path=Path(sd_model.sd_checkpoint_info.filename),
        prediction=prediction_of(sd_model),
    )


def same_storages(source: LiveSource, sd_model: Any) -> bool:
    """Whether a source still is the host's memory: a move to another device or format gives a tensor another one."""
    held = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state}
    return _places(held) == _places(parts(sd_model))


def _places(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, torch.dtype]]:
    return {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in flat(states).items()}


def prediction_of(sd_model: Any) -> str:
    """ "epsilon" or "v"."""
    return "v" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"


def facts_of(sd_model: Any) -> ModelFacts:
    """What the plan wants to know, read off the modules."""
    states = parts(sd_model)
    unet, text = sd_model.model.diffusion_model, sd_model.cond_stage_model.wrapped.transformer.config
    first = states["unet"]["input_blocks.0.0.weight"]
    return ModelFacts(
        family="sd1",
        prediction=prediction_of(sd_model),
        because="the WebUI's configuration of this checkpoint",
        native_size=int(getattr(sd_model, "image_size", 64)) * 8,
        model_channels=first.shape[0],
        context_width=text.hidden_size,
        text_layers=text.num_hidden_layers,
        unet_heads=unet.num_heads,
        text_heads=text.num_attention_heads,
        unet_parameters=_count(states["unet"]),
        text_parameters=_count(states["text"]),
        vae_parameters=_count(states["vae"]),
        dtype=str(first.dtype).removeprefix("torch."),
        title=sd_model.sd_checkpoint_info.model_name,
    )


def _count(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())


def loaded_networks() -> Any:
    """The module of the built-in Lora extension; None where it is disabled."""
    return sys.modules.get("networks")


def restore_networks(sd_model: Any, *, thoroughly: bool = False) -> None:
    """Takes off the networks that the last generation baked into the weights.

    The host itself does so only at the next forward. Only layers that say they carry one are restored; `thoroughly` also
    those that have a backup and say nothing (a generation that broke off in the middle of a layer).
    """
    networks = loaded_networks()
    if networks is None:
        return
    with torch.no_grad():
        for layer in sd_model.modules():
            if getattr(layer, "network_current_names", ()) or (thoroughly and getattr(layer, "network_weights_backup", None) is not None):
                networks.network_restore_weights_from_backup(layer)
                layer.network_current_names = ()
    networks.loaded_networks.clear()


def forget_conditionings() -> None:
    """Empties the host's memory of encoded prompts: it does not notice that a network behind a name has changed."""
    from modules.processing import StableDiffusionProcessing, StableDiffusionProcessingTxt2Img

    StableDiffusionProcessing.cached_c, StableDiffusionProcessing.cached_uc = [None, None], [None, None]
    StableDiffusionProcessingTxt2Img.cached_hr_c, StableDiffusionProcessingTxt2Img.cached_hr_uc = [None, None], [None, None]


def wipe(sd_model: Any, *, thoroughly: bool = False) -> None:
    """Everything off that generations leave on a model: baked networks, tiling's padding, remembered prompts."""
    from modules import sd_hijack

    restore_networks(sd_model, thoroughly=thoroughly)
    sd_hijack.model_hijack.apply_circular(False)
    forget_conditionings()
