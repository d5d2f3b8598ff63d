"""Which modules of a bundle get an adapter, and their names in a file (sd-scripts', as WebUIs read them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.adapters.layer_selection import no_layers_error, select_layers
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.models import layout
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.layers import TEXT_ROOTS, Layer, Weight, layers_of_weights, text_name, unet_name

TRAINABLE = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)
UNET_OWNERS = frozenset({"Transformer2DModel"})
TEXT_OWNERS = frozenset({"CLIPAttention", "CLIPSdpaAttention", "CLIPFlashAttention2", "CLIPMLP"})


def targets(bundle: ModelBundle, part: str) -> Iterator[tuple[str, nn.Module]]:
    """Name in a file and module of every layer that LoRA adapts; `part` is "unet" or "text_encoder" (all of them).

    U-Net: linear layers and 1 x 1 convolutions of the attention blocks (192 in Stable Diffusion 1 and 2, 722 in SDXL, there under the
    checkpoint's own names); text encoders: linear layers of attention and MLP (72; 138; 72 and 192).
    """
    for name, _, module in _targets(bundle, part):
        yield name, module


def target_paths(bundle: ModelBundle, part: str) -> Iterator[tuple[str, str]]:
    """Name in a file and path in the bundle ("unet.mid_block...") of the same layers."""
    for name, path, _ in _targets(bundle, part):
        yield name, path


def _targets(bundle: ModelBundle, part: str) -> Iterator[tuple[str, str, nn.Module]]:
    if part == "unet":
        name_of = unet_names(bundle)
        for path, module in linear_layers(bundle.unet, UNET_OWNERS):
            yield name_of(path), f"unet.{path}", module
        return
    for root, prefix, encoder in zip(TEXT_ROOTS, text_prefixes(bundle), bundle.text_encoders, strict=False):
        for path, module in linear_layers(encoder, TEXT_OWNERS):
            yield text_name(prefix, path), f"{root}.{path}", module


def module_at(bundle: ModelBundle, path: str) -> nn.Module:
    """The module at a plan's path."""
    root, _, rest = path.partition(".")
    return getattr(bundle, root).get_submodule(rest)  # type: ignore[no-any-return]


def plan_layers(bundle: ModelBundle, network: NetworkConfig, parts: Sequence[str]) -> list[LayerPlan]:
    """The plan of the layers that a config trains. `parts`: "unet", "text_encoder" or both.

    Raises ConfigError where lists of blocks do not fit the model, or no layer is left.
    """
    plan = [selected.plan for selected in select_layers(trainable_layers(bundle), network, parts, bundle.family.name)]
    if not plan:
        raise no_layers_error()
    return plan


def trainable_layers(bundle: ModelBundle) -> Iterator[Layer]:
    """Every layer that a network can adapt, in the modules' order."""
    yield from layers_of_weights("unet", "unet", _trainable_weights(bundle.unet), unet_names(bundle))
    for root, prefix, encoder in zip(TEXT_ROOTS, text_prefixes(bundle), bundle.text_encoders, strict=False):
        yield from layers_of_weights("text_encoder", root, _trainable_weights(encoder), partial(text_name, prefix))


def attention_layers(
    bundle: ModelBundle, parts: Sequence[str], *, rank: int, alpha: float, kind: str = "lora", options: Mapping[str, Any] | None = None
) -> list[LayerPlan]:
    """The plan of an ordinary LoRA: the attention layers, all with one rank."""
    return [LayerPlan(part, name, path, kind, rank, alpha, options or {}) for part in parts for name, path in target_paths(bundle, part)]


def _trainable_weights(root: nn.Module) -> Iterator[Weight]:
    for path, module in root.named_modules():
        if isinstance(module, TRAINABLE) and module.weight is not None:
            yield path, tuple(module.weight.shape), module.bias is not None


def linear_layers(root: nn.Module, owners: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of the linear layers and 1 x 1 convolutions inside modules of these classes."""
    for owner_name, owner in root.named_modules():
        if type(owner).__name__ in owners:
            for name, module in owner.named_modules():
                if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
                    yield f"{owner_name}.{name}", module


def unet_names(bundle: ModelBundle) -> Callable[[str], str]:
    """Maps the path of a layer of the U-Net to its name in a file: from diffusers' path, or the checkpoint's where the family wants it."""
    return unet_name(bundle.family.name, ["CrossAttn" in kind for kind in bundle.unet.config.down_block_types])


def text_prefixes(bundle: ModelBundle) -> tuple[str, ...]:
    """Prefix of each text encoder's names: lora_te, or lora_te1 and lora_te2."""
    return layout.row(bundle.family.name).lora_text
