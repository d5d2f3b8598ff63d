"""From a source to a bundle: modules are built without memory and given the source's own tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer import assets
from lora_trainer.errors import ModelError
from lora_trainer.models import detect, layout
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.families import sd1
from lora_trainer.models.source import LiveSource, ModelSource


def load(source: ModelSource, device: torch.device, dtype: torch.dtype | None = None) -> ModelBundle:
    """The bundle of a source, frozen and in eval mode.

    A LiveSource is shared: no tensor is copied unless `dtype` names another format than the host's. A FileSource is read
    in `dtype` (float32 when None), its VAE always in float32. Raises ModelError when a tensor is missing or has another shape.
    """
    if isinstance(source, LiveSource):
        parts: dict[str, Mapping[str, Tensor]] = {"unet": source.unet_state, "vae": source.vae_state, "text": source.text_state}
        return _assemble(parts, source.path, source.unet_heads, source.text_heads, source.tokenizer, source.prediction, device, dtype, None)
    facts = detect.inspect(source.path)
    parts = read_parts(source.path)
    if source.vae is not None:
        parts["vae"] = read_vae(source.vae)
    wanted = dtype or torch.float32
    return _assemble(
        parts, source.path, facts.unet_heads, facts.text_heads, clip_tokenizer(), facts.prediction, device, wanted, torch.float32
    )


def read_parts(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Tensors of a checkpoint by part ("unet", "vae", "text"), LDM names without prefix, mapped from the file."""
    from safetensors import safe_open

    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "vae": {}, "text": {}}
    with safe_open(str(path), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            for part, prefix in (("unet", layout.UNET), ("vae", layout.VAE), ("text", layout.TEXT)):
                if key.startswith(prefix):
                    parts[part][key[len(prefix) :]] = file.get_tensor(key)
    return dict(parts)


def read_vae(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a VAE file in LDM names. Raises ModelError when it is something else."""
    from safetensors import safe_open

    detect.read_header(path)
    with safe_open(str(path), framework="pt") as file:
        found = {key.removeprefix(layout.VAE): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "encoder.conv_in.weight" not in found or "post_quant_conv.weight" not in found:
        raise ModelError(
            "{path} is not a VAE in Stable Diffusion's layout.", path=str(path), fix="Choose a VAE file, or leave the field empty."
        )
    return found


def clip_tokenizer() -> Any:
    """CLIP's tokenizer from the vocabulary that ships with the project: no network."""
    from transformers import CLIPTokenizer

    folder = assets.clip_vocabulary()
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=77)


def _assemble(
    parts: Mapping[str, Mapping[str, Tensor]],
    path: Path,
    unet_heads: int,
    text_heads: int,
    tokenizer: Any,
    prediction: str,
    device: torch.device,
    dtype: torch.dtype | None,
    vae_dtype: torch.dtype | None,
) -> ModelBundle:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text_state = {new: parts["text"][old] for old, new in layout.text_names(parts["text"]).items()}
    unet_state = {new: parts["unet"][old] for old, new in layout.unet_names(parts["unet"]).items()}
    vae_state = {new: _squeezed(new, parts["vae"][old]) for old, new in layout.vae_names(parts["vae"]).items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sd1.unet_config(parts["unet"], unet_heads))
        vae = AutoencoderKL(**sd1.vae_config(parts["vae"]))
        text = CLIPTextModel(CLIPTextConfig(**sd1.text_config(text_state, text_heads)))
    _give(unet, unet_state, path, device, dtype)
    _give(text, text_state, path, device, dtype)
    _give(vae, vae_state, path, device, vae_dtype)
    held = next(unet.parameters()).dtype
    return ModelBundle(sd1.SD1(), unet, text, tokenizer, vae, sd1.alphas_cumprod().to(device), prediction, held, device)


def _give(module: nn.Module, state: Mapping[str, Tensor], path: Path, device: torch.device, dtype: torch.dtype | None) -> None:
    """Puts tensors into a module that was built on `meta`: shared where device and dtype already fit."""
    ready = {key: tensor.detach().to(device=device, dtype=dtype or tensor.dtype) for key, tensor in state.items()}
    shapes = {key: parameter.shape for key, parameter in module.named_parameters()}
    wrong = [key for key, shape in shapes.items() if key not in ready or ready[key].shape != shape]
    if wrong:
        raise ModelError(
            "{path}: {count} tensors are missing or have another shape, the first is {key}.",
            path=str(path),
            count=len(wrong),
            key=wrong[0],
            fix="The file is damaged or not a Stable Diffusion 1.x checkpoint. Choose another one.",
        )
    module.requires_grad_(False)
    module.load_state_dict({key: ready[key] for key in shapes}, strict=False, assign=True)
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta:  # CLIP's position ids: 0, 1, 2 ...
                owner.register_buffer(name, torch.arange(buffer.shape[-1], device=device).reshape(buffer.shape), persistent=False)
    module.requires_grad_(False)
    module.eval()


def _squeezed(key: str, tensor: Tensor) -> Tensor:
    """The VAE's attention is 1 x 1 convolutions in LDM and linear in diffusers: a view, not a copy."""
    return tensor[:, :, 0, 0] if ".attentions.0." in key and tensor.ndim == 4 else tensor
