"""Forge's model: its weights as normal tensors on the same memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer.host.a1111 import facts
from lora_trainer.host.a1111.model import Pin, flat
from lora_trainer.host.fingerprint import fingerprint
from lora_trainer.messages import Message, say
from lora_trainer.models.load import clip_tokenizer
from lora_trainer.models.source import FileSource, LiveSource, ModelSource

SHARED = (torch.float32, torch.float16, torch.bfloat16)
ENCODERS = {"sdxl": ("clip_l", "clip_g"), "sd1": ("clip_l",), "sd2": ("clip_h",)}
"""Names of the text encoders of each family, in a checkpoint's order; by them a family is told (reForge takes its own SD 2 for SD 1)."""


@attrs.frozen(eq=False)
class ForgePin(Pin):
    """What the loan is of, and how Forge is told to load it."""

    parameters: dict[str, Any] = attrs.field(factory=dict)


def parts(sd_model: Any) -> dict[str, dict[str, Tensor]]:
    """Tensors of U-Net, VAE and text encoders under a checkpoint's names without prefix: the host's own storages."""
    original = sd_model.forge_objects_original
    states = {"unet": original.unet.model.diffusion_model.state_dict(), "vae": original.vae.first_stage_model.state_dict()}
    family = family_of(sd_model)
    states |= {part: _text_state(part, encoder, family) for part, encoder in encoders(sd_model).items()}
    return {
        part: {name.replace("token_embedding.wrapped.", "token_embedding."): normal(tensor) for name, tensor in state.items()}
        for part, state in states.items()
    }


def _text_state(part: str, encoder: Any, family: str) -> dict[str, Tensor]:
    """reForge keeps the projection of SDXL's second encoder beside transformers' module, turned, and Stable Diffusion 2's unread layer."""
    state = dict(encoder.transformer.state_dict())
    projection, read = getattr(encoder, "text_projection", None), getattr(encoder, "layer_idx", None)
    if part == "text_2" and isinstance(projection, Tensor) and "text_projection.weight" not in state:
        state["text_projection.weight"] = projection.detach().t()
    if family == "sd2" and read is not None:
        layers = encoder.transformer.config.num_hidden_layers
        unread = tuple(f"text_model.encoder.layers.{number}." for number in range(layers + 1 + read, layers))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(unread)}
    return state


def encoders(sd_model: Any) -> dict[str, Any]:
    """Its text encoders as "text" and "text_2"."""
    held = sd_model.forge_objects_original.clip.cond_stage_model
    return {part: getattr(held, name) for part, name in zip(("text", "text_2"), ENCODERS[family_of(sd_model)], strict=False)}


@torch.inference_mode(False)
def normal(tensor: Tensor) -> Tensor:
    """A normal tensor on the same memory: Forge's are made in inference mode, and nothing can be learned through those."""
    with torch.no_grad():
        again = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return again.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def odd_format(sd_model: Any) -> str:
    """The number format that keeps the weights from being shared ("float8_e4m3fn", "nf4", "gguf" ...); "" when nothing does."""
    original = sd_model.forge_objects_original
    modules = (original.unet.model.diffusion_model, original.vae.first_stage_model, *encoders(sd_model).values())
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if getattr(parameter, "gguf_cls", None) is not None:
            return "gguf"
        if hasattr(parameter, "quant_type") or hasattr(parameter, "bnb_quantized"):
            return str(getattr(parameter, "quant_type", "4 bit"))
        if parameter.dtype not in SHARED:
            return str(parameter.dtype).removeprefix("torch.")
    return ""


def weights_of(sd_model: Any, vae_dtype: torch.dtype | None = None) -> dict[str, int]:
    """The fingerprint of everything that is lent, the VAE in that format.

    Embeddings of text count in 32 bits: the host itself turns them into that when it reads its first prompt.
    """
    states = flat(parts(sd_model))
    formats = {name: torch.float32 for name in states if ".embeddings." in name and states[name].is_floating_point()}
    if vae_dtype is not None:
        formats |= {name: vae_dtype for name in states if name.startswith("vae.")}
    return fingerprint({name: tensor.to(formats.get(name, tensor.dtype)) for name, tensor in states.items()})


def live_source(sd_model: Any) -> LiveSource:
    """The model as it is, shared. Its networks must be off (`engine.clean`)."""
    states, texts = parts(sd_model), list(encoders(sd_model).values())
    unet = sd_model.forge_objects_original.unet.model
    heads = [encoder.transformer.config.num_attention_heads for encoder in texts]
    return LiveSource(
        unet_state=states["unet"],
        vae_state=states["vae"],
        text_state=states["text"],
        unet_heads=max(0, unet.diffusion_model.num_heads),
        text_heads=heads[0],
        tokenizer=clip_tokenizer(),
        path=Path(sd_model.sd_checkpoint_info.filename),
        prediction=prediction_of(sd_model),
        family=family_of(sd_model),
        zero_terminal_snr=_zero_terminal_snr(sd_model),
        unet_head_width=max(1, getattr(unet.diffusion_model, "num_head_channels", 64)),
        text_2_state=states.get("text_2", {}),
        text_2_heads=heads[1] if len(heads) > 1 else 0,
    )


def notes(source: ModelSource, device: torch.device) -> tuple[Message, ...]:
    """What the user should know of where the weights are: those that wait in main memory for want of room are copied."""
    if isinstance(source, FileSource):
        return ()
    states = (source.unet_state, source.text_state, source.text_2_state)
    away = sum(tensor.numel() * tensor.element_size() for state in states for tensor in state.values() if tensor.device.type != device.type)
    if not away:
        return ()
    told = say(
        "The WebUI keeps {size} MB of the model in main memory, for want of room on the device: they are copied there for training.",
        size=round(away / 1e6),
    )
    return (told,)


def known(sd_model: Any) -> facts.Known:
    """What the host and the checkpoint's file say together."""
    drawn_zero = _zero_terminal_snr(sd_model)
    return facts.of_checkpoint(sd_model.sd_checkpoint_info, family_of(sd_model), prediction_of(sd_model), drawn_zero=drawn_zero)


def same_storages(source: LiveSource, sd_model: Any) -> bool:
    """Whether a source still is the host's memory: a move to another device or format gives a tensor another one."""
    held = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state}
    held |= {"text_2": source.text_2_state} if source.text_2_state else {}
    return _places(held) == _places(parts(sd_model))


def _places(states: Any) -> dict[str, tuple[int, torch.dtype]]:
    return {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in flat(states).items()}


def prediction_of(sd_model: Any) -> str:
    """ "epsilon" or "v", as the host reads the U-Net's answer when it draws.

    reForge's `parameterization` is what a yaml file says; the marks in a checkpoint change only how it samples.
    """
    unet = sd_model.forge_objects_original.unet.model
    predictor, sampling = getattr(unet, "predictor", None), getattr(unet, "model_sampling", None)
    if predictor is not None:
        return "v" if predictor.prediction_type == "v_prediction" else "epsilon"
    return "v" if any(kind.__name__ == "V_PREDICTION" for kind in type(sampling).__mro__) else "epsilon"


def _zero_terminal_snr(sd_model: Any) -> bool:
    """Whether the host draws with it by itself, for the sake of a mark in the checkpoint."""
    return bool(getattr(getattr(sd_model, "model_config", sd_model), "ztsnr", False))


def family_of(sd_model: Any) -> str:
    """Its row's name in models/layout.py."""
    held = sd_model.forge_objects_original.clip.cond_stage_model
    return next(family for family, names in ENCODERS.items() if all(hasattr(held, name) for name in names))
