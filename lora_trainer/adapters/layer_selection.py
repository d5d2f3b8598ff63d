"""From settings to the list of layers that are trained, each with its kind, rank, alpha and share of the rate (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.config.choices import unet_blocks
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES, LayerShape
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import say
from lora_trainer.models import layout
from lora_trainer.models.layers import Layer, packed

ATTENDING = r"\.attentions\.\d+\."
CONVOLVING = r"\.(resnets|downsamplers|upsamplers)\.\d+\."
ENDS = r"unet\.(conv_in|conv_out|time_embedding\.linear_[12]|add_embedding\.linear_[12])$"
TEXT = r"\.(self_attn|mlp)\."
LAYERS = {
    "attn-only": r"\.attn[12]\.|\.self_attn\.",
    "attn-mlp": f"{ATTENDING}|{TEXT}",
    "blocks": f"{ATTENDING}|{CONVOLVING}|{TEXT}",
    "full": f"{ATTENDING}|{CONVOLVING}|{ENDS}|{TEXT}",
    "full-lin": f"{ATTENDING}|{CONVOLVING}|{ENDS}|{TEXT}",
    "unet-transformer-only": ATTENDING,
    "unet-convblock-only": CONVOLVING,
}
"""What the path of a layer holds, by preset."""
BLOCK_LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")


@attrs.frozen
class SelectedLayer:
    """A layer that is trained: what is put on it, and its shape, which tells the size of a file."""

    plan: LayerPlan
    shape: LayerShape

    @property
    def numbers(self) -> int:
        """Numbers of it in a file."""
        return NETWORK_KINDS[self.plan.kind].numbers(self.shape, self.plan.rank, self.plan.options)


def select_layers(layers: Iterable[Layer], network: NetworkConfig, parts: Sequence[str], family: str) -> list[SelectedLayer]:
    """What a network with these settings is put on, in the layers' order. Raises ConfigError where block lists do not fit the family."""
    rules = _Rules.of(network, family)
    return [chosen for layer in layers if layer.part in parts and (chosen := rules.chosen(layer)) is not None]


def preset_of(network: NetworkConfig) -> str:
    """The preset that "auto" means: with the convolution blocks where the type trains them, or a rank is given for them."""
    if network.preset != "auto":
        return network.preset
    wide = NETWORK_TYPES[network.type].conv and network.conv_dim != 0
    return "blocks" if wide or network.conv_dim or network.conv_block_dims.strip() else "attn-mlp"


def options_of(network: NetworkConfig) -> dict[str, Any]:
    """What the kind of this type is to do, without what it does by itself."""
    row = NETWORK_TYPES[network.type]
    known = NETWORK_KINDS[row.kind].options
    wanted = {
        "rs_lora": network.rs_lora,
        "dora": network.dora_axis if network.dora_wd or row.fixed.get("dora") else "",
        "tucker": network.use_tucker,
        "factor": network.factor,
        "decompose_both": network.decompose_both,
        "full_matrix": network.full_matrix,
        "block_size": network.unit,
        "constraint": network.constraint,
        "rescaled": network.rescaled,
        "init": "" if network.initialization == "default" else network.initialization,
        "dropout": network.dropout,
        "rank_dropout": network.rank_dropout,
        "module_dropout": network.module_dropout,
    }
    wanted |= {name: value for name, value in row.fixed.items() if name != "dora"}
    return {name: value for name, value in wanted.items() if name in known and value != known[name]}


def pattern_hits(layers: Iterable[Layer], network: NetworkConfig, parts: Sequence[str], family: str) -> dict[str, dict[str, int]]:
    """{"include": {pattern: layers}, "exclude": {...}}: how many layers each pattern hits of those that the preset holds."""
    plain = attrs.evolve(network, include=(), exclude=())
    names = [(one.plan.name, one.plan.path) for one in select_layers(layers, plain, parts, family)]
    found = {}
    for option in ("include", "exclude"):
        patterns = {text: pattern(text) for text in getattr(network, option)}
        found[option] = {text: sum(_holds(one, name, path) for name, path in names) for text, one in patterns.items()}
    return found


def nothing_left() -> ConfigError:
    """What to raise where the settings leave no layer."""
    why = say("no layer of the model is trained with these settings.")
    return ConfigError([Problem("network.preset", why, say("Choose other layers, or take patterns and zeros for blocks out."))])


def pattern(text: str) -> re.Pattern[str]:
    """A pattern that names are searched with. Raises ConfigError for what is none."""
    try:
        return re.compile(text)
    except re.error as error:
        values = {"pattern": text, "why": str(error)}
        raise ConfigError(
            [Problem("network.include", say("{pattern} is no pattern: {why}.", **values), say("Write a part of the layers' names."))]
        ) from error


def _holds(one: re.Pattern[str], name: str, path: str) -> bool:
    return bool(one.search(name) or one.search(path))


@attrs.frozen(eq=False)
class _Rules:
    """The settings, read once."""

    network: NetworkConfig
    blocks: unet_blocks.Blocks
    rates: tuple[float, ...] | None
    lists: dict[str, tuple[float, ...]]
    preset: re.Pattern[str]
    include: tuple[re.Pattern[str], ...]
    exclude: tuple[re.Pattern[str], ...]
    kind: str
    options: dict[str, Any]
    packed: tuple[str, ...]

    @classmethod
    def of(cls, network: NetworkConfig, family: str) -> _Rules:
        there = unet_blocks.blocks_of(family)
        sides = (network.down_lr_weight, network.mid_lr_weight, network.up_lr_weight)
        return cls(
            network,
            there,
            unet_blocks.rate_weights(*sides, network.block_lr_zero_threshold, there),
            {name: _whole(name, getattr(network, name), there) for name in BLOCK_LISTS},
            re.compile(LAYERS[preset_of(network)]),
            tuple(map(pattern, network.include)),
            tuple(map(pattern, network.exclude)),
            NETWORK_TYPES[network.type].kind,
            options_of(network),
            packed(family),
        )

    def chosen(self, layer: Layer) -> SelectedLayer | None:
        """What is put on a layer; None where nothing is."""
        if not self._meant(layer):
            return None
        block = self.blocks.place(layer.name) if layer.part == "unet" else None
        rate = self.rates[block] if self.rates and block is not None else 1.0
        rank, alpha = self._rank(layer, block)
        if not rank or not rate:
            return None
        kind, options = ("norm", {}) if len(layer.shape) == 1 else (self.kind, self.options)
        if kind == "full" and layer.path.startswith(self.packed) and layer.path.endswith(layout.PACKED):
            options = {**options, "bias": False}  # A1111 reads no bias of a matrix that it holds as a part of another
        plan = LayerPlan(layer.part, layer.name, layer.path, kind, rank, alpha, options, rate)
        return SelectedLayer(plan, LayerShape(layer.shape, layer.bias))

    def _meant(self, layer: Layer) -> bool:
        network = self.network
        if len(layer.shape) == 1 and not network.train_norm:
            return False
        if _is_wide(layer) and preset_of(network) == "full-lin":
            return False
        if not self.preset.search(layer.path):
            return False
        if self.include and not any(_holds(one, layer.name, layer.path) for one in self.include):
            return False
        return not any(_holds(one, layer.name, layer.path) for one in self.exclude)

    def _rank(self, layer: Layer, block: int | None) -> tuple[int, float]:
        """Rank and alpha; rank 0 where the layer is not trained. What is empty keeps the strength alpha / rank."""
        network, strength = self.network, self.network.alpha / self.network.dim
        if layer.part == "text_encoder":
            rank = network.text_encoder_dim or network.dim
            return rank, _or(network.text_encoder_alpha, strength * rank)
        wide = _is_wide(layer)
        ranks, alphas = ("conv_block_dims", "conv_block_alphas") if wide else ("block_dims", "block_alphas")
        if block is not None and self.lists[ranks]:
            rank = int(self.lists[ranks][block])
            return rank, self.lists[alphas][block] if self.lists[alphas] else strength * rank
        if wide:
            rank = network.dim if network.conv_dim is None else network.conv_dim
            return rank, _or(network.conv_alpha, strength * rank)
        return network.dim, network.alpha


def _is_wide(layer: Layer) -> bool:
    """Whether it is a convolution of more than one point."""
    return any(side != 1 for side in layer.shape[2:])


def _or(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given


def _whole(name: str, text: str, there: unet_blocks.Blocks) -> tuple[float, ...]:
    """A list with a number for each block, or nothing where none is given. Raises ConfigError for another length."""
    given = unet_blocks.numbers(text)
    if not given:
        return ()
    try:
        return there.whole(given)
    except ValueError as error:
        lengths = " / ".join(str(length) for length in sorted({there.count, there.short}, reverse=True))
        values = {"count": len(given), "wanted": lengths}
        raise ConfigError(
            [
                Problem(
                    f"network.{name}",
                    say("{count} numbers are given, and the model's U-Net takes {wanted}.", **values),
                    say("Write a number for each block, from the first on."),
                )
            ]
        ) from error
