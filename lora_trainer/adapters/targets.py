"""Which modules get a LoRA, and their names in a file (sd-scripts' names, as the WebUI reads them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from lora_trainer.models import layout
from lora_trainer.models.bundle import ModelBundle

UNET_PREFIX = "lora_unet"
UNET_OWNERS = frozenset({"Transformer2DModel"})
TEXT_OWNERS = frozenset({"CLIPAttention", "CLIPSdpaAttention", "CLIPFlashAttention2", "CLIPMLP"})


def targets(bundle: ModelBundle, part: str) -> Iterator[tuple[str, nn.Module]]:
    """File name and module of every layer that LoRA is put on; `part` is "unet" or "text_encoder" (all of them).

    U-Net: linear layers and 1 x 1 convolutions of the attention blocks (192 in Stable Diffusion 1 and 2, 722 in SDXL, there under the
    checkpoint's own names); text encoders: linear layers of attention and MLP (72; 138; 72 and 192).
    """
    for name, _, module in _placed(bundle, part):
        yield name, module


def places(bundle: ModelBundle, part: str) -> Iterator[tuple[str, str]]:
    """File name and path in the bundle ("unet.mid_block...") of the same layers."""
    for name, path, _ in _placed(bundle, part):
        yield name, path


def _placed(bundle: ModelBundle, part: str) -> Iterator[tuple[str, str, nn.Module]]:
    if part == "unet":
        name_of = unet_names(bundle)
        for path, module in layers(bundle.unet, UNET_OWNERS):
            yield name_of(path), f"unet.{path}", module
        return
    roots = ("text_encoder", "text_encoder_2")
    for root, prefix, encoder in zip(roots, text_prefixes(bundle), bundle.text_encoders, strict=False):
        for path, module in layers(encoder, TEXT_OWNERS):
            yield text_name(prefix, path), f"{root}.{path}", module


def layers(root: nn.Module, owners: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of the linear layers and 1 x 1 convolutions inside modules of these classes."""
    for owner_name, owner in root.named_modules():
        if type(owner).__name__ in owners:
            for name, module in owner.named_modules():
                if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
                    yield f"{owner_name}.{name}", module


def unet_names(bundle: ModelBundle) -> Callable[[str], str]:
    """From the path of any layer of the U-Net to its name in a file: diffusers' path, or the checkpoint's where the family says so."""
    path_of = _path_in_files(bundle)
    return lambda path: f"{UNET_PREFIX}_{path_of(path).replace('.', '_')}"


def text_prefixes(bundle: ModelBundle) -> tuple[str, ...]:
    """What names of each text encoder begin with: lora_te, or lora_te1 and lora_te2."""
    return layout.row(bundle.family.name).lora_text


def text_name(prefix: str, path: str) -> str:
    """The name in a file of a text encoder's module. Some transformers releases drop `text_model.`: it is put back."""
    whole = path if path.startswith("text_model.") or "." not in path else f"text_model.{path}"
    return f"{prefix}_{whole.replace('.', '_')}"


def _path_in_files(bundle: ModelBundle) -> Callable[[str], str]:
    if layout.row(bundle.family.name).lora_unet == "diffusers":
        return lambda path: path
    attends = ["CrossAttn" in kind for kind in bundle.unet.config.down_block_types]
    table = layout.turned_round(layout.unet_prefixes(attends))
    return lambda path: layout.renamed([f"{path}.weight"], table)[f"{path}.weight"].removesuffix(".weight")
