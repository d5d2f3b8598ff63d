"""Which layers are trained with the given settings, each with its kind, rank, alpha and learning rate weight (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.adapters.file_ranks import FileRanks, file_ranks
from lora_trainer.adapters.layer_plan import LayerPlan
from lora_trainer.config.choices import unet_blocks
from lora_trainer.config.choices.networks import NETWORK_KINDS, NETWORK_TYPES, LayerShape
from lora_trainer.config.patterns import Pattern, PatternError
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import say
from lora_trainer.models import layout
from lora_trainer.models.layers import Layer, open_clip_roots

ATTENTION = r"\.attentions\.\d+\."
CONV_BLOCKS = r"\.(resnets|downsamplers|upsamplers)\.\d+\."
IN_OUT = r"unet\.(conv_in|conv_out|time_embedding\.linear_[12]|add_embedding\.linear_[12])$"
TEXT_ENCODER = r"\.(self_attn|mlp)\."
PRESET_PATTERNS = {
    "attn-only": r"\.attn[12]\.|\.self_attn\.",
    "attn-mlp": f"{ATTENTION}|{TEXT_ENCODER}",
    "blocks": f"{ATTENTION}|{CONV_BLOCKS}|{TEXT_ENCODER}",
    "full": f"{ATTENTION}|{CONV_BLOCKS}|{IN_OUT}|{TEXT_ENCODER}",
    "full-lin": f"{ATTENTION}|{CONV_BLOCKS}|{IN_OUT}|{TEXT_ENCODER}",
    "unet-transformer-only": ATTENTION,
    "unet-convblock-only": CONV_BLOCKS,
}
"""Preset -> pattern that the path of a layer matches."""
BLOCK_LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")


@attrs.frozen
class SelectedLayer:
    """A layer that is trained: its plan, and its shape, from which the size of the file is computed."""

    plan: LayerPlan
    shape: LayerShape

    @property
    def parameter_count(self) -> int:
        """How many values a file holds for it."""
        return NETWORK_KINDS[self.plan.kind].parameter_count(self.shape, self.plan.rank, self.plan.options)


def select_layers(layers: Iterable[Layer], network: NetworkConfig, parts: Sequence[str], family: str) -> list[SelectedLayer]:
    """The layers that a network with these settings trains, in their order. `parts`: "unet", "text_encoder".

    Raises ConfigError where lists of blocks do not fit the family, or a pattern is not a regular expression.
    """
    rules = _Rules.of(network, family)
    return [selected for layer in layers if layer.part in parts and (selected := rules.select(layer)) is not None]


def resolve_preset(network: NetworkConfig) -> str:
    """The preset; for "auto" that with convolution blocks where the type trains them, or where a rank is set for them."""
    if network.preset != "auto":
        return network.preset
    trains_conv = NETWORK_TYPES[network.type].conv and network.conv_dim != 0
    return "blocks" if trains_conv or network.conv_dim or network.conv_block_dims.strip() else "attn-mlp"


def kind_options(network: NetworkConfig) -> dict[str, Any]:
    """The options of the type's kind that differ from its defaults."""
    row = NETWORK_TYPES[network.type]
    defaults = NETWORK_KINDS[row.kind].options
    options = {
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
    options |= {name: value for name, value in row.fixed.items() if name != "dora"}
    return {name: value for name, value in options.items() if name in defaults and value != defaults[name]}


def pattern_hits(layers: Iterable[Layer], network: NetworkConfig, parts: Sequence[str], family: str) -> dict[str, dict[str, int]]:
    """{"include": {pattern: count}, "exclude": {...}}: how many of the preset's layers each pattern matches."""
    plain = attrs.evolve(network, include=(), exclude=())
    names = [(selected.plan.name, selected.plan.path) for selected in select_layers(layers, plain, parts, family)]
    hits = {}
    for option in ("include", "exclude"):
        patterns = compile_patterns(network, option)
        hits[option] = {pattern.text: sum(pattern.matches(name, path) for name, path in names) for pattern in patterns}
    return hits


def no_layers_error() -> ConfigError:
    """The error for settings with which no layer is trained."""
    message = say("no layer of the model is trained with these settings.")
    return ConfigError([Problem("network.preset", message, say("Choose other layers, or take patterns and zeros for blocks out."))])


class LayerPattern:
    """A pattern of network.include or network.exclude. Raises ConfigError that names it where it is invalid or takes too long."""

    def __init__(self, option: str, text: str) -> None:
        self.option, self.text = option, text
        try:
            self._pattern = Pattern(text)
        except PatternError as error:
            raise self._refused(error) from error

    def matches(self, name: str, path: str) -> bool:
        """Whether the layer's name in a file or its path in the bundle holds the pattern."""
        try:
            return self._pattern.matches(name) or self._pattern.matches(path)
        except PatternError as error:
            raise self._refused(error) from error

    def _refused(self, error: PatternError) -> ConfigError:
        message = say("{pattern} is not a valid pattern: {why}.", pattern=self.text[:200], why=error.reason)
        return ConfigError([Problem(f"network.{self.option}", message, say("Write a part of the layers' names."))])


def compile_patterns(network: NetworkConfig, option: str) -> tuple[LayerPattern, ...]:
    """The patterns of "include" or "exclude". Raises ConfigError."""
    return tuple(LayerPattern(option, text) for text in getattr(network, option))


@attrs.frozen(eq=False)
class _Rules:
    """The settings, parsed once."""

    network: NetworkConfig
    blocks: unet_blocks.BlockLayout
    lr_weights: tuple[float, ...] | None
    lists: dict[str, tuple[float, ...]]
    preset: re.Pattern[str]
    include: tuple[LayerPattern, ...]
    exclude: tuple[LayerPattern, ...]
    kind: str
    options: dict[str, Any]
    packed: tuple[str, ...]
    file_ranks: FileRanks | None = None
    """The layers and ranks of the file that the training begins with, where they are taken from it."""

    @classmethod
    def of(cls, network: NetworkConfig, family: str) -> _Rules:
        blocks = unet_blocks.block_layout(family)
        sides = (network.down_lr_weight, network.mid_lr_weight, network.up_lr_weight)
        return cls(
            network,
            blocks,
            unet_blocks.lr_weights(*sides, network.block_lr_zero_threshold, blocks),
            {name: _per_block(name, getattr(network, name), blocks) for name in BLOCK_LISTS},
            re.compile(PRESET_PATTERNS[resolve_preset(network)]),
            compile_patterns(network, "include"),
            compile_patterns(network, "exclude"),
            NETWORK_TYPES[network.type].kind,
            kind_options(network),
            open_clip_roots(family),
            file_ranks(Path(network.network_weights)) if network.dim_from_weights and network.network_weights else None,
        )

    def select(self, layer: Layer) -> SelectedLayer | None:
        """The layer with its plan; None where it is not trained."""
        if not self._is_selected(layer):
            return None
        block = self.blocks.block_index(layer.name) if layer.part == "unet" else None
        lr_weight = self.lr_weights[block] if self.lr_weights and block is not None else 1.0
        rank, alpha = self._rank_in_file(layer, block) if self.file_ranks else self._rank_and_alpha(layer, block)
        if not rank or not lr_weight:
            return None
        kind, options = ("norm", {}) if len(layer.shape) == 1 else (self.kind, self.options)
        if kind == "full" and layer.path.startswith(self.packed) and layer.path.endswith(layout.PACKED):
            options = {**options, "bias": False}  # A1111 ignores the bias of a matrix that it stores packed with others
        plan = LayerPlan(layer.part, layer.name, layer.path, kind, rank, alpha, options, lr_weight)
        return SelectedLayer(plan, LayerShape(layer.shape, layer.bias))

    def _rank_in_file(self, layer: Layer, block: int | None) -> tuple[int, float]:
        """Rank and alpha as in the file; the config's where the layer's kind has no rank."""
        assert self.file_ranks is not None
        if layer.name not in self.file_ranks.ranks:
            return self._rank_and_alpha(layer, block)
        rank, alpha = self.file_ranks.ranks[layer.name]
        return rank, alpha / sqrt(rank) if self.options.get("rs_lora") else alpha

    def _is_selected(self, layer: Layer) -> bool:
        network = self.network
        if self.file_ranks is not None:
            return layer.name in self.file_ranks.names
        if len(layer.shape) == 1 and not network.train_norm:
            return False
        if _is_spatial(layer) and resolve_preset(network) == "full-lin":
            return False
        if not self.preset.search(layer.path):
            return False
        if self.include and not any(pattern.matches(layer.name, layer.path) for pattern in self.include):
            return False
        return not any(pattern.matches(layer.name, layer.path) for pattern in self.exclude)

    def _rank_and_alpha(self, layer: Layer, block: int | None) -> tuple[int, float]:
        """Rank and alpha; rank 0 where the layer is not trained. An empty alpha keeps the network's alpha / rank."""
        network, scale = self.network, self.network.alpha / self.network.dim
        if layer.part == "text_encoder":
            rank = network.text_encoder_dim or network.dim
            return rank, _or(network.text_encoder_alpha, scale * rank)
        spatial = _is_spatial(layer)
        ranks, alphas = ("conv_block_dims", "conv_block_alphas") if spatial else ("block_dims", "block_alphas")
        if block is not None and self.lists[ranks]:
            rank = int(self.lists[ranks][block])
            return rank, self.lists[alphas][block] if self.lists[alphas] else scale * rank
        if spatial:
            rank = network.dim if network.conv_dim is None else network.conv_dim
            return rank, _or(network.conv_alpha, scale * rank)
        return network.dim, network.alpha


def _is_spatial(layer: Layer) -> bool:
    """Whether it is a convolution larger than 1 x 1."""
    return any(side != 1 for side in layer.shape[2:])


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _per_block(name: str, text: str, blocks: unet_blocks.BlockLayout) -> tuple[float, ...]:
    """A list with a number for each block, () for an empty text. Raises ConfigError for another length."""
    numbers = unet_blocks.parse_numbers(text)
    if not numbers:
        return ()
    try:
        return blocks.expand(numbers)
    except ValueError as error:
        lengths = " / ".join(str(length) for length in sorted({blocks.count, blocks.short_count}, reverse=True))
        values = {"count": len(numbers), "wanted": lengths}
        raise ConfigError(
            [
                Problem(
                    f"network.{name}",
                    say("{count} numbers are given, and the model's U-Net takes {wanted}.", **values),
                    say("Write a number for each block, from the first on."),
                )
            ]
        ) from error
