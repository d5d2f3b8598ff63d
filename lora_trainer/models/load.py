"""Loads a source into a bundle: modules are built on the meta device and get the source's own tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lora_trainer import assets
from lora_trainer.errors import ModelError
from lora_trainer.gc_pause import gc_paused
from lora_trainer.models import layout
from lora_trainer.models.bundle import Family, ModelBundle
from lora_trainer.models.detection import detect, infer_config
from lora_trainer.models.detection.infer_config import Heads
from lora_trainer.models.detection.probe import probe_prediction
from lora_trainer.models.families import family as family_called
from lora_trainer.models.files import diffusers_folder, tensor_file
from lora_trainer.models.files.vae_file import LDM, check_vae, find_vae_file
from lora_trainer.models.noise_schedule import schedule_for
from lora_trainer.models.source import FileSource, LiveSource, ModelSource

INITIAL_VALUES = {
    *(getattr(nn.init, name) for name in ("uniform_", "normal_", "kaiming_uniform_", "constant_")),
    *(getattr(Tensor, name) for name in ("uniform_", "normal_", "zero_", "fill_")),
}
"""What modules call to fill their new tensors."""
VAE_PREFIXES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
Parts = Mapping[str, Mapping[str, Tensor]]


class _NoInitialValues(TorchFunctionMode):
    """Inside, in this thread, modules do not fill their tensors: on the meta device nothing is there to fill, and trying takes longest."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in INITIAL_VALUES:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@attrs.frozen(eq=False)
class _LoadedParts:
    """A source's parts under diffusers' and transformers' names, and facts that are not in its tensors."""

    path: Path
    family: Family
    parts: Parts
    tokenizer: Any
    prediction: str
    zero_terminal_snr: bool
    sure: bool = True
    unet_heads: Heads | None = None
    text_heads: Mapping[str, int] = attrs.field(factory=dict)
    vae_groups: int = 32


def load(
    source: ModelSource, device: torch.device, dtype: torch.dtype | None = None, *, weights_on: torch.device | None = None
) -> ModelBundle:
    """Loads the bundle of a source, frozen and in eval mode.

    A LiveSource is shared: no tensor is copied unless `dtype` is not the host's. A FileSource is loaded in `dtype` (None: float32), its
    VAE always in float32. `weights_on`: where a FileSource's weights stay at first (None: on `device`), to be moved part by part.
    Raises ModelError if a tensor is missing or has another shape.
    """
    if isinstance(source, LiveSource):
        return _build(_read_live(source), device, dtype, None)
    return _build(_read_files(source), device, dtype or torch.float32, torch.float32, weights_on)


def read_parts(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Tensors of a checkpoint by part ("unet", "vae", "text", "text_2") under LDM names without prefix, memory-mapped."""
    row = layout.family_of(tensor_file.contents(path).tensors)
    prefixes = layout.part_prefixes(row.family if row is not None else "sd1")
    tensors = tensor_file.tensors(path, lambda key: key.startswith(tuple(prefixes.values())))
    return {
        part: {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)} for part, prefix in prefixes.items()
    }


def read_vae(path: Path) -> dict[str, Tensor]:
    """Tensors of a VAE file or folder under diffusers' names. Raises ModelError if it is something else."""
    check_vae(path)
    tensors = {key.removeprefix(layout.VAE): tensor for key, tensor in tensor_file.tensors(find_vae_file(path)).items()}
    if any(key.startswith(LDM) for key in tensors):
        return {new: tensors[old] for old, new in layout.vae_names(tensors).items()}
    return {key: tensor for key, tensor in diffusers_folder.current_names(tensors) if key.startswith(VAE_PREFIXES)}


def clip_tokenizer() -> Any:
    """CLIP's tokenizer with the vocabulary that ships with the project: no network."""
    from transformers import CLIPTokenizer

    folder = assets.clip_vocabulary()
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    options = {"pad_token": "<|endoftext|>", "model_max_length": 77}
    if "vocab_file" in signature(CLIPTokenizer.__init__).parameters:
        return CLIPTokenizer(str(vocabulary), str(merges), **options)
    pairs = [tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:] if line]  # transformers 5
    return CLIPTokenizer(json.loads(vocabulary.read_text(encoding="utf-8")), pairs, **options)


def _read_live(source: LiveSource) -> _LoadedParts:
    states = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state, "text_2": source.text_2_state}
    return _LoadedParts(
        source.path,
        family_called(source.family),
        {part: layout.rename_part(part, state, source.family) for part, state in states.items() if state},
        source.tokenizer,
        source.prediction,
        source.zero_terminal_snr,
        sure=source.sure,
        unet_heads=Heads((source.unet_heads,) if source.unet_heads else (), source.unet_head_width),
        text_heads={"text": source.text_heads, "text_2": source.text_2_heads},
    )


def _read_files(source: FileSource) -> _LoadedParts:
    facts = detect.inspect(source.path, sha256=source.sha256)
    unet_heads, texts, groups = None, {}, 32
    if source.path.is_dir():
        parts = diffusers_folder.read_parts(source.path)
        unet_heads, texts, groups = diffusers_folder.heads(source.path)
    else:
        parts = {part: layout.rename_part(part, state, facts.family) for part, state in read_parts(source.path).items()}
    if source.vae is not None:
        parts["vae"], groups = read_vae(source.vae), 32
    return _LoadedParts(
        source.path,
        family_called(facts.family),
        parts,
        clip_tokenizer(),
        source.prediction or facts.prediction,
        facts.zero_terminal_snr if source.zero_terminal_snr is None else source.zero_terminal_snr,
        sure=facts.sure or source.prediction is not None,
        unet_heads=unet_heads,
        text_heads=texts,
        vae_groups=groups,
    )


@gc_paused()
def _build(
    source: _LoadedParts,
    device: torch.device,
    dtype: torch.dtype | None,
    vae_dtype: torch.dtype | None,
    weights_on: torch.device | None = None,
) -> ModelBundle:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    family = source.family
    parts = {**source.parts, "vae": {key: _squeeze_attention(key, tensor) for key, tensor in source.parts["vae"].items()}}
    text_parts = [part for part in ("text", "text_2") if part in parts]
    heads = [source.text_heads.get(part) or infer_config.text_heads(_text_width(parts[part])) for part in text_parts]
    with torch.device("meta"), _NoInitialValues():
        unet = UNet2DConditionModel(**family.unet_config(parts["unet"], source.unet_heads))
        vae = AutoencoderKL(**infer_config.vae_config(parts["vae"], source.vae_groups))
        text_encoders = [
            family.text_encoder(number, parts[part], count) for number, (part, count) in enumerate(zip(text_parts, heads, strict=True))
        ]
    place = weights_on or device
    _assign_tensors(unet, parts["unet"], source.path, place, dtype)
    _assign_tensors(vae, parts["vae"], source.path, place, vae_dtype)
    for part, text_encoder in zip(text_parts, text_encoders, strict=True):
        _assign_tensors(text_encoder, parts[part], source.path, place, dtype)
    unet_dtype = next(unet.parameters()).dtype
    schedule = schedule_for(source.prediction, family.noise_schedule)
    alphas = schedule.alphas_cumprod(zero_terminal_snr=source.zero_terminal_snr).to(device)
    bundle = ModelBundle(
        family,
        unet,
        text_encoders[0],
        source.tokenizer,
        vae,
        alphas,
        source.prediction,
        unet_dtype,
        device,
        text_encoders[1] if len(text_encoders) > 1 else None,
        source.zero_terminal_snr,
    )
    if not source.sure:
        probed = (unet, *text_encoders) if place != device else ()
        for module in probed:
            module.to(device)
        bundle.prediction = probe_prediction(bundle)
        for module in probed:
            module.to(place)
    return bundle


def _text_width(text: Mapping[str, Tensor]) -> int:
    return text["text_model.embeddings.token_embedding.weight"].shape[1]


def _assign_tensors(module: nn.Module, state: Mapping[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype | None) -> None:
    """Assigns tensors to a module on the meta device, without a copy if device and dtype match. Raises ModelError."""
    owners = [(f"{prefix}." if prefix else "", owner) for prefix, owner in module.named_modules()]
    places = [
        (f"{prefix}{name}", owner, name, parameter.shape)
        for prefix, owner in owners
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]
    wrong = [key for key, _, _, shape in places if key not in state or state[key].shape != shape]
    if wrong:
        raise ModelError(
            "{path}: {count} tensors are missing or have another shape, the first is {key}.",
            path=str(path),
            count=len(wrong),
            key=wrong[0],
            fix="The file is damaged, or of another kind than its names say. Choose another one.",
        )
    for key, owner, name, _ in places:
        tensor = state[key].detach().to(device=device, dtype=dtype or state[key].dtype)
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    for _, owner in owners:
        owner.training = False
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and buffer.is_meta:  # CLIP's position ids: 0, 1, 2 ...
                owner.register_buffer(name, torch.arange(buffer.shape[-1], device=device).reshape(buffer.shape), persistent=False)


def _squeeze_attention(key: str, tensor: Tensor) -> Tensor:
    """The VAE's attention: 1 x 1 convolutions in LDM, linear in diffusers. A view, not a copy."""
    return tensor[:, :, 0, 0] if ".attentions.0." in key and tensor.ndim == 4 else tensor
