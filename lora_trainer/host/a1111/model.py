"""The host's model: accessing its weights without copying them, and removing what generations leave on them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer.host.a1111 import facts
from lora_trainer.host.fingerprint import fingerprint
from lora_trainer.models.load import clip_tokenizer
from lora_trainer.models.source import LiveSource

_HYPERNETWORK = re.compile(r"\.hyper_[kv]\.")
"""Modules that a hypernetwork leaves in attention layers after a generation; they have no effect any more."""


@attrs.frozen(eq=False)
class Pin:
    """What is lent: the host's entry of the checkpoint, the VAE's path (None: the checkpoint's own), the clip skip, the VAE's dtype,
    every weight's fingerprint (empty: the file is read instead), and the host's fp8 option."""

    checkpoint: Any
    vae_file: str | None
    clip_skip: int
    vae_dtype: torch.dtype
    fingerprints: dict[str, int]
    fp8: str | None = None


def component_states(sd_model: Any) -> dict[str, dict[str, Tensor]]:
    """State dicts of U-Net, VAE and text encoders under a checkpoint's names without prefix; they share the host's memory."""
    encoder_states = {part: encoder.state_dict() for part, encoder in text_encoders(sd_model).items()}
    return {
        "unet": {name: tensor for name, tensor in sd_model.model.diffusion_model.state_dict().items() if not _HYPERNETWORK.search(name)},
        "vae": dict(sd_model.first_stage_model.state_dict()),
        **{
            part: {name.replace("token_embedding.wrapped.", "token_embedding."): tensor for name, tensor in state.items()}
            for part, state in encoder_states.items()
        },
    }


def text_encoders(sd_model: Any) -> dict[str, Any]:
    """The text encoders as "text" and "text_2": modules of transformers or open_clip; others are left out."""
    modules = (
        getattr(wrapper.wrapped, "transformer", None) or getattr(wrapper.wrapped, "model", None) for wrapper in encoder_wrappers(sd_model)
    )
    return dict(zip(("text", "text_2"), (encoder for encoder in modules if encoder is not None), strict=False))


def encoder_wrappers(sd_model: Any) -> list[Any]:
    """The host's wrapper of each text encoder. SDXL's conditioner also holds size embedders, which have none."""
    conditioner = getattr(sd_model, "conditioner", None)
    embedders = [sd_model.cond_stage_model] if conditioner is None else list(conditioner.embedders)
    return [wrapper for wrapper in embedders if hasattr(wrapper, "wrapped")]


def _head_count(encoder: Any) -> int:
    """The number of attention heads of a text encoder, which its tensors do not show."""
    config = getattr(encoder, "config", None)
    return int(encoder.transformer.resblocks[0].attn.num_heads if config is None else config.num_attention_heads)


def flatten(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all components under "COMPONENT.NAME"."""
    return {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}


def weight_fingerprints(sd_model: Any, vae_dtype: torch.dtype | None = None) -> dict[str, int]:
    """The fingerprint of every lent tensor.

    The host may switch the VAE to 32 bits by itself (after black pictures): `vae_dtype` is the dtype to compare in.
    """
    states = component_states(sd_model)
    if vae_dtype is not None:
        states["vae"] = {name: tensor.to(vae_dtype) for name, tensor in states["vae"].items()}
    return fingerprint(flatten(states))


def live_source(sd_model: Any) -> LiveSource:
    """The host's model as a source that shares its memory. Merged networks must be removed before (`unmerge_networks`)."""
    states, encoders = component_states(sd_model), list(text_encoders(sd_model).values())
    unet, model_facts = sd_model.model.diffusion_model, facts.from_model(sd_model)
    return LiveSource(
        unet_state=states["unet"],
        vae_state=states["vae"],
        text_state=states["text"],
        unet_heads=max(0, unet.num_heads),
        text_heads=_head_count(encoders[0]),
        tokenizer=getattr(encoder_wrappers(sd_model)[0], "tokenizer", None) or clip_tokenizer(),
        path=Path(sd_model.sd_checkpoint_info.filename),
        prediction=model_facts.prediction.kind,
        family=model_facts.family,
        zero_terminal_snr=model_facts.prediction.zero_terminal_snr,
        unet_head_width=max(1, getattr(unet, "num_head_channels", 64)),
        text_2_state=states.get("text_2", {}),
        text_2_heads=_head_count(encoders[1]) if len(encoders) > 1 else 0,
        sure=model_facts.prediction.sure,
    )


def shares_memory(source: LiveSource, sd_model: Any) -> bool:
    """Whether the source's tensors are still the model's memory: moving or converting a model gives it new memory."""
    return same_addresses(source, component_states(sd_model))


def same_addresses(source: LiveSource, states: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether the source's tensors have the addresses and dtypes of those in `states`."""
    lent = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state}
    lent |= {"text_2": source.text_2_state} if source.text_2_state else {}
    return _addresses(lent) == _addresses(states)


def _addresses(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, torch.dtype]]:
    return {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in flatten(states).items()}


def networks_module() -> Any:
    """The module of the built-in Lora extension; None where it is disabled."""
    return sys.modules.get("networks")


def unmerge_networks(sd_model: Any, *, thoroughly: bool = False) -> None:
    """Restores the weights that the last generation's networks were merged into.

    The host itself does so only at the next forward. Only layers that report a merged network are restored; with `thoroughly` also
    those that have a backup and report none (a generation that stopped in the middle of a layer).
    """
    networks = networks_module()
    if networks is None:
        return
    with torch.no_grad():
        for layer in sd_model.modules():
            if getattr(layer, "network_current_names", ()) or (thoroughly and getattr(layer, "network_weights_backup", None) is not None):
                networks.network_restore_weights_from_backup(layer)
                layer.network_current_names = ()
    networks.loaded_networks.clear()


def clear_prompt_cache() -> None:
    """Clears the host's cache of encoded prompts, which does not notice when the network behind a name has changed."""
    from modules.processing import StableDiffusionProcessing, StableDiffusionProcessingTxt2Img

    StableDiffusionProcessing.cached_c, StableDiffusionProcessing.cached_uc = [None, None], [None, None]
    StableDiffusionProcessingTxt2Img.cached_hr_c, StableDiffusionProcessingTxt2Img.cached_hr_uc = [None, None], [None, None]


def wipe(sd_model: Any, *, thoroughly: bool = False) -> None:
    """Removes everything that generations leave on a model: merged networks, tiling's padding, cached prompts."""
    from modules import sd_hijack

    unmerge_networks(sd_model, thoroughly=thoroughly)
    sd_hijack.model_hijack.apply_circular(False)
    clear_prompt_cache()
