"""Forge's model: its weights as normal tensors that share its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer.host.a1111 import facts
from lora_trainer.host.a1111.model import Pin, flatten, same_addresses
from lora_trainer.host.fingerprint import fingerprint
from lora_trainer.host.forge.capabilities import packed_format
from lora_trainer.messages import Message, say
from lora_trainer.models.load import clip_tokenizer
from lora_trainer.models.source import FileSource, LiveSource, ModelSource

SHARED = (torch.float32, torch.float16, torch.bfloat16)
ENCODERS = {"sdxl": ("clip_l", "clip_g"), "sd1": ("clip_l",), "sd2": ("clip_h",)}
"""The text encoders of each family, in a checkpoint's order; they identify the family (reForge takes its own SD 2 for SD 1)."""


@attrs.frozen(eq=False)
class ForgePin(Pin):
    """What is lent, and Forge's parameters to load it."""

    parameters: dict[str, Any] = attrs.field(factory=dict)


def component_states(sd_model: Any) -> dict[str, dict[str, Tensor]]:
    """State dicts of U-Net, VAE and text encoders under a checkpoint's names without prefix; they share the host's memory."""
    original = sd_model.forge_objects_original
    states = {"unet": original.unet.model.diffusion_model.state_dict(), "vae": original.vae.first_stage_model.state_dict()}
    family = family_of(sd_model)
    states |= {part: _text_state(part, encoder, family) for part, encoder in text_encoders(sd_model).items()}
    return {
        part: {name.replace("token_embedding.wrapped.", "token_embedding."): normal_tensor(tensor) for name, tensor in state.items()}
        for part, state in states.items()
    }


def _text_state(part: str, encoder: Any, family: str) -> dict[str, Tensor]:
    """A text encoder's state dict, without what no checkpoint holds.

    reForge keeps SDXL's text projection transposed and outside transformers' module, and an unused last layer of Stable Diffusion 2.
    The first encoder's projection is unused; Forge Neo does not even initialize it, so that its values change with every load.
    """
    state = dict(encoder.transformer.state_dict())
    if part == "text":
        state.pop("text_projection.weight", None)
    projection, read = getattr(encoder, "text_projection", None), getattr(encoder, "layer_idx", None)
    if part == "text_2" and isinstance(projection, Tensor) and "text_projection.weight" not in state:
        state["text_projection.weight"] = projection.detach().t()
    if family == "sd2" and read is not None:
        layers = encoder.transformer.config.num_hidden_layers
        unread = tuple(f"text_model.encoder.layers.{number}." for number in range(layers + 1 + read, layers))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(unread)}
    return state


def text_encoders(sd_model: Any) -> dict[str, Any]:
    """The text encoders as "text" and "text_2"."""
    text_model = sd_model.forge_objects_original.clip.cond_stage_model
    return {part: getattr(text_model, name) for part, name in zip(("text", "text_2"), ENCODERS[family_of(sd_model)], strict=False)}


@torch.inference_mode(False)
def normal_tensor(tensor: Tensor) -> Tensor:
    """A normal tensor on the same memory: Forge's are inference tensors, which cannot take part in autograd."""
    with torch.no_grad():
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def number_format_not_shared(sd_model: Any) -> str:
    """The number format that prevents sharing the weights ("float8_e4m3fn", "nf4", "gguf" ...); "" when they can be shared."""
    original = sd_model.forge_objects_original
    modules = (original.unet.model.diffusion_model, original.vae.first_stage_model, *text_encoders(sd_model).values())
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if name := packed_format(parameter):
            return name
        if parameter.dtype not in SHARED:
            return str(parameter.dtype).removeprefix("torch.")
    return ""


def weight_fingerprints(sd_model: Any, vae_dtype: torch.dtype | None = None) -> dict[str, int]:
    """The fingerprint of every lent tensor, the VAE in `vae_dtype`.

    Text embeddings are compared in 32 bits: the host itself converts them when it encodes its first prompt.
    """
    states = flatten(component_states(sd_model))
    formats = {name: torch.float32 for name in states if ".embeddings." in name and states[name].is_floating_point()}
    if vae_dtype is not None:
        formats |= {name: vae_dtype for name in states if name.startswith("vae.")}
    return fingerprint({name: tensor.to(formats.get(name, tensor.dtype)) for name, tensor in states.items()})


def live_source(sd_model: Any) -> LiveSource:
    """The host's model as a source that shares its memory. Merged networks must be removed before (`engine.clean`)."""
    states, encoders = component_states(sd_model), list(text_encoders(sd_model).values())
    unet = sd_model.forge_objects_original.unet.model
    heads = [encoder.transformer.config.num_attention_heads for encoder in encoders]
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
    """A message when some weights are in main memory for lack of device memory: they are copied for training."""
    if isinstance(source, FileSource):
        return ()
    states = (source.unet_state, source.text_state, source.text_2_state)
    not_on_device = sum(
        tensor.numel() * tensor.element_size() for state in states for tensor in state.values() if tensor.device.type != device.type
    )
    if not not_on_device:
        return ()
    message = say(
        "The WebUI keeps {size} MB of the model in main memory, because the device is full: they are copied to the device for training.",
        size=round(not_on_device / 1e6),
    )
    return (message,)


def model_facts(sd_model: Any) -> facts.HostModelFacts:
    """The facts of the model, from the host and from the checkpoint's file."""
    host_zero_snr = _zero_terminal_snr(sd_model)
    return facts.from_checkpoint(sd_model.sd_checkpoint_info, family_of(sd_model), prediction_of(sd_model), host_zero_snr=host_zero_snr)


def shares_memory(source: LiveSource, sd_model: Any) -> bool:
    """Whether the source's tensors are still the model's memory: moving or converting a model gives it new memory."""
    return same_addresses(source, component_states(sd_model))


def prediction_of(sd_model: Any) -> str:
    """ "epsilon", "v" or "flow": how the host interprets the U-Net's output when it samples.

    reForge's `parameterization` comes from a yaml file; marks in a checkpoint change only its sampling.
    """
    unet = sd_model.forge_objects_original.unet.model
    predictor, sampling = getattr(unet, "predictor", None), getattr(unet, "model_sampling", None)
    if predictor is not None:
        return {"v_prediction": "v", "const": "flow"}.get(predictor.prediction_type, "epsilon")
    return "v" if any(kind.__name__ == "V_PREDICTION" for kind in type(sampling).__mro__) else "epsilon"


def _zero_terminal_snr(sd_model: Any) -> bool:
    """Whether the host samples with it by itself, because of a mark in the checkpoint."""
    return bool(getattr(getattr(sd_model, "model_config", sd_model), "ztsnr", False))


def family_of(sd_model: Any) -> str:
    """The name of the model's row in models/layout.py."""
    text_model = sd_model.forge_objects_original.clip.cond_stage_model
    return next(family for family, names in ENCODERS.items() if all(hasattr(text_model, name) for name in names))
