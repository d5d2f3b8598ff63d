"""The layers of a model that an adapter can be applied to: names and shapes from a file's header or from modules (no torch)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import attrs

from lora_trainer.models import layout
from lora_trainer.models.detection import released_shapes

Weight = tuple[str, tuple[int, ...], bool]

UNET_PREFIX = "lora_unet"
TEXT_ROOTS = ("text_encoder", "text_encoder_2")
"""A bundle's text encoders."""


@attrs.frozen
class Layer:
    """A layer with a weight. `name`: in a LoRA file; `path`: of the module in a bundle ("unet.mid_block...").

    `shape` of the weight: [out, in], [out, in, kh, kw], or [channels] of a norm.
    """

    part: str
    name: str
    path: str
    shape: tuple[int, ...]
    bias: bool = False


def open_clip_roots(family: str) -> tuple[str, ...]:
    """The text encoders in open_clip's layout in checkpoints, where query, key and value are one matrix."""
    return tuple(root for root, prefix in zip(TEXT_ROOTS, layout.row(family).text, strict=False) if layout.is_open_clip(prefix))


def of_state(family: str, unet: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """The layers of U-Net and text encoders whose keys have diffusers' and transformers' names; values have a `shape`."""
    levels = attention_levels(unet)
    layers = list(layers_of_weights("unet", "unet", _weights(unet), unet_name(family, levels)))
    for prefix, root, text in zip(layout.row(family).lora_text, TEXT_ROOTS, texts, strict=False):
        layers += layers_of_weights("text_encoder", root, _weights(text), partial(text_name, prefix))
    return tuple(layers)


def layers_of_weights(part: str, root: str, weights: Iterable[Weight], name_of: Callable[[str], str]) -> Iterator[Layer]:
    """Layers from (path below the root, shape of the weight, whether it has a bias), without embedding tables."""
    for path, shape, bias in weights:
        if ".embeddings." not in f".{path}.":
            yield Layer(part, name_of(path), f"{root}.{path}", shape, bias)


def attention_levels(keys: Iterable[str]) -> tuple[bool, ...]:
    """For each level of a U-Net with diffusers' names, whether it has cross-attention."""
    keys = list(keys)
    levels = {int(key.split(".")[1]) for key in keys if key.startswith("down_blocks.")}
    with_attention = {int(key.split(".")[1]) for key in keys if re.match(r"down_blocks\.\d+\.attentions\.", key)}
    return tuple(level in with_attention for level in range(len(levels)))


def unet_name(family: str, attends: Sequence[bool]) -> Callable[[str], str]:
    """A function from a U-Net layer's path to its name in a LoRA file: by diffusers' or the checkpoint's names, as the family has it."""
    if layout.row(family).lora_unet == "diffusers":
        return lambda path: f"{UNET_PREFIX}_{path.replace('.', '_')}"
    table = layout.invert(layout.unet_prefixes(attends))

    def name(path: str) -> str:
        there = layout.rename_keys([f"{path}.weight"], table).get(f"{path}.weight", path).removesuffix(".weight")
        return f"{UNET_PREFIX}_{there.replace('.', '_')}"

    return name


def text_name(prefix: str, path: str) -> str:
    """The name of a text encoder's layer in a LoRA file. Adds `text_model.`, which some transformers releases drop."""
    full_path = path if path.startswith("text_model.") or "." not in path else f"text_model.{path}"
    return f"{prefix}_{full_path.replace('.', '_')}"


@lru_cache(maxsize=3)
def of_family(family: str) -> tuple[Layer, ...]:
    """The layers of a family's released models, for planning without a checkpoint."""
    parts = {name: {key: _Shape(shape) for key, shape in part.items()} for name, part in released_shapes.shapes(family).items()}
    return of_state(family, parts["unet"], [part for name, part in parts.items() if name != "unet"])


def _weights(state: Mapping[str, Any]) -> Iterator[Weight]:
    for key, value in state.items():
        if key.endswith(".weight"):
            path = key.removesuffix(".weight")
            yield path, tuple(value.shape), f"{path}.bias" in state


@attrs.frozen
class _Shape:
    shape: tuple[int, ...]
