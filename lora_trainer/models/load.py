"""From a source to a bundle: modules are built without memory and given the source's own tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from lora_trainer import assets
from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.models.bundle import Family, ModelBundle
from lora_trainer.models.detection import detect, infer_config
from lora_trainer.models.detection.infer_config import Heads
from lora_trainer.models.detection.probe import asked
from lora_trainer.models.families import family as family_called
from lora_trainer.models.files import diffusers_folder, tensor_file
from lora_trainer.models.files.vae_file import LDM, check_vae, vae_file
from lora_trainer.models.noise_schedule import alphas_cumprod
from lora_trainer.models.source import FileSource, LiveSource, ModelSource

OF_A_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
Parts = Mapping[str, Mapping[str, Tensor]]


@attrs.frozen(eq=False)
class _Read:
    """A source as it was read: parts under diffusers' and transformers' names, and what no tensor tells."""

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


def load(source: ModelSource, device: torch.device, dtype: torch.dtype | None = None) -> ModelBundle:
    """The bundle of a source, frozen and in eval mode.

    A LiveSource is shared: no tensor is copied unless `dtype` names another format than the host's. A FileSource is read
    in `dtype` (float32 when None), its VAE always in float32. Raises ModelError when a tensor is missing or has another shape.
    """
    if isinstance(source, LiveSource):
        return _built(_shared(source), device, dtype, None)
    return _built(_from_disk(source), device, dtype or torch.float32, torch.float32)


def read_parts(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Tensors of a checkpoint by part ("unet", "vae", "text", "text_2"), LDM names without prefix, mapped from the file."""
    row = layout.family_of(tensor_file.contents(path).tensors)
    prefixes = layout.part_prefixes(row.family if row is not None else "sd1")
    held = tensor_file.tensors(path, lambda key: key.startswith(tuple(prefixes.values())))
    return {
        part: {key[len(prefix) :]: tensor for key, tensor in held.items() if key.startswith(prefix)} for part, prefix in prefixes.items()
    }


def read_vae(path: Path) -> dict[str, Tensor]:
    """Tensors of a VAE's file, or of its folder, under diffusers' names. Raises ModelError when it is something else."""
    check_vae(path)
    held = {key.removeprefix(layout.VAE): tensor for key, tensor in tensor_file.tensors(vae_file(path)).items()}
    if any(key.startswith(LDM) for key in held):
        return {new: held[old] for old, new in layout.vae_names(held).items()}
    return {key: tensor for key, tensor in diffusers_folder.today(held) if key.startswith(OF_A_VAE)}


def clip_tokenizer() -> Any:
    """CLIP's tokenizer from the vocabulary that ships with the project: no network."""
    from transformers import CLIPTokenizer

    folder = assets.clip_vocabulary()
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=77)


def _shared(source: LiveSource) -> _Read:
    held = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state, "text_2": source.text_2_state}
    return _Read(
        source.path,
        family_called(source.family),
        {part: layout.modules_names(part, state, source.family) for part, state in held.items() if state},
        source.tokenizer,
        source.prediction,
        source.zero_terminal_snr,
        sure=source.sure,
        unet_heads=Heads((source.unet_heads,) if source.unet_heads else (), source.unet_head_width),
        text_heads={"text": source.text_heads, "text_2": source.text_2_heads},
    )


def _from_disk(source: FileSource) -> _Read:
    facts = detect.inspect(source.path, sha256=source.sha256)
    unet_heads, texts, groups = None, {}, 32
    if source.path.is_dir():
        parts = diffusers_folder.read(source.path)
        unet_heads, texts, groups = diffusers_folder.heads(source.path)
    else:
        parts = {part: layout.modules_names(part, state, facts.family) for part, state in read_parts(source.path).items()}
    if source.vae is not None:
        parts["vae"], groups = read_vae(source.vae), 32
    return _Read(
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


def _built(read: _Read, device: torch.device, dtype: torch.dtype | None, vae_dtype: torch.dtype | None) -> ModelBundle:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    family, parts = read.family, {**read.parts, "vae": {key: _squeezed(key, tensor) for key, tensor in read.parts["vae"].items()}}
    named = [part for part in ("text", "text_2") if part in parts]
    heads = [read.text_heads.get(part) or infer_config.text_heads(_width(parts[part])) for part in named]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**family.unet_config(parts["unet"], read.unet_heads))
        vae = AutoencoderKL(**infer_config.vae_config(parts["vae"], read.vae_groups))
        texts = [family.text_encoder(number, parts[part], count) for number, (part, count) in enumerate(zip(named, heads, strict=True))]
    _give(unet, parts["unet"], read.path, device, dtype)
    _give(vae, parts["vae"], read.path, device, vae_dtype)
    for part, text in zip(named, texts, strict=True):
        _give(text, parts[part], read.path, device, dtype)
    held = next(unet.parameters()).dtype
    alphas = alphas_cumprod(zero_terminal_snr=read.zero_terminal_snr).to(device)
    bundle = ModelBundle(
        family,
        unet,
        texts[0],
        read.tokenizer,
        vae,
        alphas,
        read.prediction,
        held,
        device,
        texts[1] if len(texts) > 1 else None,
        read.zero_terminal_snr,
    )
    if not read.sure:
        bundle.prediction = asked(bundle)
    return bundle


def _width(text: Mapping[str, Tensor]) -> int:
    return text["text_model.embeddings.token_embedding.weight"].shape[1]


def _give(module: nn.Module, state: Mapping[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype | None) -> None:
    """Puts tensors into a module that was built on `meta`: shared where device and dtype already fit."""
    shapes = {key: parameter.shape for key, parameter in module.named_parameters()}
    ready = {key: state[key].detach().to(device=device, dtype=dtype or state[key].dtype) for key in shapes if key in state}
    wrong = [key for key, shape in shapes.items() if key not in ready or ready[key].shape != shape]
    if wrong:
        raise ModelError(
            "{path}: {count} tensors are missing or have another shape, the first is {key}.",
            path=str(path),
            count=len(wrong),
            key=wrong[0],
            fix="The file is damaged, or of another kind than its names say. Choose another one.",
        )
    module.requires_grad_(False)
    module.load_state_dict(ready, strict=False, assign=True)
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta:  # CLIP's position ids: 0, 1, 2 ...
                owner.register_buffer(name, torch.arange(buffer.shape[-1], device=device).reshape(buffer.shape), persistent=False)
    module.requires_grad_(False)
    module.eval()


def _squeezed(key: str, tensor: Tensor) -> Tensor:
    """The VAE's attention is 1 x 1 convolutions in LDM and linear in diffusers: a view, not a copy."""
    return tensor[:, :, 0, 0] if ".attentions.0." in key and tensor.ndim == 4 else tensor
