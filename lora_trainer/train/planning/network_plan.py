"""The network of a run before it is built: its layers, number of parameters and file size (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import attrs

from lora_trainer.adapters import layer_selection
from lora_trainer.adapters.layer_selection import SelectedLayer
from lora_trainer.config import effective
from lora_trainer.config.choices.networks import NETWORK_KINDS
from lora_trainer.config.schema import NetworkConfig, TrainConfig
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.models.layers import Layer, of_family

DTYPE_BYTES = {"float": 4, "fp16": 2, "bf16": 2}


@attrs.frozen
class PlannedNetwork:
    """Number of layers by part; `parameters` counts trained ones, `file_bytes` all tensors of a file."""

    layers: tuple[tuple[str, int], ...]
    parameters: int
    file_bytes: int
    ranks: tuple[int, ...]
    """Ranks of the layers, the most frequent first."""
    preset: str
    exact: bool
    """Whether the checkpoint's own layers were counted, not those usual for its family."""

    def to_json(self) -> dict[str, Any]:
        """The "network" part of the `check` document."""
        return {**attrs.asdict(self), "layers": dict(self.layers), "ranks": list(self.ranks)}


def trainable_layers(facts: ModelFacts | None) -> tuple[Layer, ...]:
    """The checkpoint's layers; where they are unknown, those of its family, or of Stable Diffusion 1."""
    return facts.layers if facts is not None and facts.layers else of_family(_family(facts))


def selected_layers(config: TrainConfig, facts: ModelFacts | None) -> tuple[SelectedLayer, ...]:
    """The layers that the run trains. Raises ConfigError for block lists that do not fit the model."""
    return _select_layers(
        trainable_layers(facts), config.network, effective.trained_parts(config), "sd1" if facts is None else facts.family
    )


@lru_cache(maxsize=8)
def _select_layers(layers: Sequence[Layer], network: NetworkConfig, parts: tuple[str, ...], family: str) -> tuple[SelectedLayer, ...]:
    selected = tuple(layer_selection.select_layers(layers, network, parts, family))
    if parts and not selected:
        raise layer_selection.no_layers_error()
    return selected


def planned_network(config: TrainConfig, facts: ModelFacts | None) -> PlannedNetwork:
    """The network as `check` and the tab show it. Raises ConfigError for block lists that do not fit the model."""
    layers = selected_layers(config, facts)
    ranks = Counter(layer.plan.rank for layer in layers if NETWORK_KINDS[layer.plan.kind].has_rank)
    total = sum(layer.parameter_count for layer in layers)
    return PlannedNetwork(
        layers=tuple((part, sum(layer.plan.part == part for layer in layers)) for part in effective.trained_parts(config)),
        parameters=total - _alpha_count(layers),
        file_bytes=total * DTYPE_BYTES[config.save.precision],
        ranks=tuple(rank for rank, _ in ranks.most_common()),
        preset=layer_selection.resolve_preset(config.network),
        exact=facts is not None and bool(facts.layers),
    )


def group_rates(config: TrainConfig, facts: ModelFacts | None) -> dict[str, float]:
    """Learning rate of each parameter group of the optimizer; blocks with a weight of their own are separate groups."""
    weights: dict[str, set[float]] = {}
    for layer in selected_layers(config, facts):
        for name in (layer.plan.part, f"{layer.plan.part} plus") if NETWORK_KINDS[layer.plan.kind].lora_plus else (layer.plan.part,):
            weights.setdefault(name, set()).add(layer.plan.lr_weight)
    return {
        effective.group_name(name, weight): rate * weight
        for name, rate in effective.learning_rates(config).items()
        for weight in sorted(weights.get(name, ()), reverse=True)
    }


def pattern_hits(config: TrainConfig, facts: ModelFacts | None) -> dict[str, dict[str, int]]:
    """Number of layers that each pattern matches: {"include": {pattern: layers}, "exclude": {...}}."""
    network = config.network
    if not (network.include or network.exclude):
        return {"include": {}, "exclude": {}}
    return layer_selection.pattern_hits(
        trainable_layers(facts), network, effective.trained_parts(config), "sd1" if facts is None else facts.family
    )


def _family(facts: ModelFacts | None) -> str:
    return "sd1" if facts is None else facts.family


def _alpha_count(layers: Sequence[SelectedLayer]) -> int:
    """Number of alpha scalars in a file, which are not trained."""
    return sum(NETWORK_KINDS[layer.plan.kind].saves_alpha for layer in layers)
