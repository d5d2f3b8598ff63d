"""Which layers are trained, with what kind of addition, rank and alpha: a list that says all of it, and makes nothing yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from lora_trainer.adapters.targets import places
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.models.bundle import ModelBundle


@attrs.frozen
class LayerPlan:
    """One layer: `name` in a file, `path` in the bundle ("unet.mid_block..."); `options` are those of the kind (config/networks.py).

    `alpha` is the user's: a rank-stabilised layer writes another one into its file.
    """

    part: str
    name: str
    path: str
    kind: str
    rank: int
    alpha: float
    options: Mapping[str, Any] = attrs.field(factory=dict)


def module_at(bundle: ModelBundle, path: str) -> nn.Module:
    """The module of a plan's path."""
    root, _, rest = path.partition(".")
    return getattr(bundle, root).get_submodule(rest)  # type: ignore[no-any-return]


def planned(bundle: ModelBundle, network: NetworkConfig, parts: Sequence[str]) -> list[LayerPlan]:
    """The layers that a config asks for. `parts`: "unet", "text_encoder" or both, as they are trained."""
    return attention_layers(bundle, parts, rank=network.dim, alpha=network.alpha)


def attention_layers(
    bundle: ModelBundle, parts: Sequence[str], *, rank: int, alpha: float, kind: str = "lora", options: Mapping[str, Any] | None = None
) -> list[LayerPlan]:
    """The layers that an ordinary LoRA stands on, all with one rank."""

    def planned() -> Iterator[LayerPlan]:
        for part in parts:
            for name, path in places(bundle, part):
                yield LayerPlan(part, name, path, kind, rank, alpha, options or {})

    return list(planned())
