"""The host's model: reading its weights without copying them, and wiping off what generations leave on them."""

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
"""What a hypernetwork leaves in attention layers when a picture was drawn with it: it does nothing there any more."""


@attrs.frozen(eq=False)
class Pin:
    """What the loan is of: the host's entry of the checkpoint, the VAE's file (None: the checkpoint's own), the clip skip,
    the VAE's number format, every weight's fingerprint (empty: the file is read instead), and the host's option of 8 bits."""

    checkpoint: Any
    vae_file: str | None
    clip_skip: int
    vae_dtype: torch.dtype
    weights: dict[str, int]
    fp8: str | None = None


def parts(sd_model: Any) -> dict[str, dict[str, Tensor]]:
    """Tensors of U-Net, VAE and text encoders under a checkpoint's names without prefix: the host's own storages."""
    texts = {part: encoder.state_dict() for part, encoder in encoders(sd_model).items()}
    return {
        "unet": {name: tensor for name, tensor in sd_model.model.diffusion_model.state_dict().items() if not _HYPERNETWORK.search(name)},
        "vae": dict(sd_model.first_stage_model.state_dict()),
        **{
            part: {name.replace("token_embedding.wrapped.", "token_embedding."): tensor for name, tensor in state.items()}
            for part, state in texts.items()
        },
    }


def encoders(sd_model: Any) -> dict[str, Any]:
    """Its text encoders as "text" and "text_2", transformers' modules or open_clip's; none that are of another kind."""
    found = (getattr(wrapper.wrapped, "transformer", None) or getattr(wrapper.wrapped, "model", None) for wrapper in wrappers(sd_model))
    return dict(zip(("text", "text_2"), (encoder for encoder in found if encoder is not None), strict=False))


def wrappers(sd_model: Any) -> list[Any]:
    """What the host put around each text encoder. SDXL's conditioner has embedders of sizes beside them, which nothing is around."""
    conditioner = getattr(sd_model, "conditioner", None)
    around = [sd_model.cond_stage_model] if conditioner is None else list(conditioner.embedders)
    return [wrapper for wrapper in around if hasattr(wrapper, "wrapped")]


def _heads(encoder: Any) -> int:
    """Heads of a text encoder's attention, which no tensor tells."""
    config = getattr(encoder, "config", None)
    return int(encoder.transformer.resblocks[0].attn.num_heads if config is None else config.num_attention_heads)


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
    states, texts = parts(sd_model), list(encoders(sd_model).values())
    unet, known = sd_model.model.diffusion_model, facts.of_model(sd_model)
    return LiveSource(
        unet_state=states["unet"],
        vae_state=states["vae"],
        text_state=states["text"],
        unet_heads=max(0, unet.num_heads),
        text_heads=_heads(texts[0]),
        tokenizer=getattr(wrappers(sd_model)[0], "tokenizer", None) or clip_tokenizer(),
        path=Path(sd_model.sd_checkpoint_info.filename),
        prediction=known.found.kind,
        family=known.family,
        zero_terminal_snr=known.found.zero_terminal_snr,
        unet_head_width=max(1, getattr(unet, "num_head_channels", 64)),
        text_2_state=states.get("text_2", {}),
        text_2_heads=_heads(texts[1]) if len(texts) > 1 else 0,
        sure=known.found.sure,
    )


def same_storages(source: LiveSource, sd_model: Any) -> bool:
    """Whether a source still is the host's memory: a move to another device or format gives a tensor another one."""
    held = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state}
    held |= {"text_2": source.text_2_state} if source.text_2_state else {}
    return _places(held) == _places(parts(sd_model))


def _places(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, torch.dtype]]:
    return {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in flat(states).items()}


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
