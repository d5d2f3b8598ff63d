"""Which modules get a LoRA, and their names in a file (sd-scripts' names, as the WebUI reads them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.layer_selection import nothing_left, select_layers
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.models import layout
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.layers import TEXT_ROOTS, Layer, Weight, named, text_name, unet_name

TRAINABLE = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)
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
    for root, prefix, encoder in zip(TEXT_ROOTS, text_prefixes(bundle), bundle.text_encoders, strict=False):
        for path, module in layers(encoder, TEXT_OWNERS):
            yield text_name(prefix, path), f"{root}.{path}", module


def module_at(bundle: ModelBundle, path: str) -> nn.Module:
    """The module of a plan's path."""
    root, _, rest = path.partition(".")
    return getattr(bundle, root).get_submodule(rest)  # type: ignore[no-any-return]


def planned(bundle: ModelBundle, network: NetworkConfig, parts: Sequence[str]) -> list[LayerPlan]:
    """The layers that a config asks for. `parts`: "unet", "text_encoder" or both, as they are trained.

    Raises ConfigError where lists of blocks do not fit the model, or nothing is left to be trained.
    """
    found = [chosen.plan for chosen in select_layers(layers_of(bundle), network, parts, bundle.family.name)]
    if not found:
        raise nothing_left()
    return found


def layers_of(bundle: ModelBundle) -> Iterator[Layer]:
    """Every layer that a network can be put on, in the modules' order."""
    yield from named("unet", "unet", _weights(bundle.unet), unet_names(bundle))
    for root, prefix, encoder in zip(TEXT_ROOTS, text_prefixes(bundle), bundle.text_encoders, strict=False):
        yield from named("text_encoder", root, _weights(encoder), partial(text_name, prefix))


def attention_layers(
    bundle: ModelBundle, parts: Sequence[str], *, rank: int, alpha: float, kind: str = "lora", options: Mapping[str, Any] | None = None
) -> list[LayerPlan]:
    """The layers that an ordinary LoRA stands on, all with one rank."""
    return [LayerPlan(part, name, path, kind, rank, alpha, options or {}) for part in parts for name, path in places(bundle, part)]


def _weights(root: nn.Module) -> Iterator[Weight]:
    for path, module in root.named_modules():
        if isinstance(module, TRAINABLE) and module.weight is not None:
            yield path, tuple(module.weight.shape), module.bias is not None


def layers(root: nn.Module, owners: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of the linear layers and 1 x 1 convolutions inside modules of these classes."""
    for owner_name, owner in root.named_modules():
        if type(owner).__name__ in owners:
            for name, module in owner.named_modules():
                if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
                    yield f"{owner_name}.{name}", module


def unet_names(bundle: ModelBundle) -> Callable[[str], str]:
    """From the path of any layer of the U-Net to its name in a file: diffusers' path, or the checkpoint's where the family says so."""
    return unet_name(bundle.family.name, ["CrossAttn" in kind for kind in bundle.unet.config.down_block_types])


def text_prefixes(bundle: ModelBundle) -> tuple[str, ...]:
    """What names of each text encoder begin with: lora_te, or lora_te1 and lora_te2."""
    return layout.row(bundle.family.name).lora_text
