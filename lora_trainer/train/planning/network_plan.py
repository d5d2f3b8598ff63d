"""The network of a run before there is one: which layers it stands on, how many numbers it trains, how large its file is (no torch)."""

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

BYTES = {"float": 4, "fp16": 2, "bf16": 2}


@attrs.frozen
class PlannedNetwork:
    """Counts of layers by part; `parameters` are trained, `file_bytes` those of all tensors in a file."""

    layers: tuple[tuple[str, int], ...]
    parameters: int
    file_bytes: int
    ranks: tuple[int, ...]
    """Ranks that layers have, the most frequent first."""
    preset: str
    exact: bool
    """Whether a checkpoint's own layers were counted, not those that its family usually has."""

    def to_json(self) -> dict[str, Any]:
        """Its part of the `check` shape."""
        return {**attrs.asdict(self), "layers": dict(self.layers), "ranks": list(self.ranks)}


def layers_of(facts: ModelFacts | None) -> tuple[Layer, ...]:
    """The checkpoint's layers; without one those of its family, or of Stable Diffusion 1."""
    return facts.layers if facts is not None and facts.layers else of_family("sd1" if facts is None else facts.family)


def chosen_layers(config: TrainConfig, facts: ModelFacts | None) -> tuple[SelectedLayer, ...]:
    """What the run trains. Raises ConfigError where lists of blocks do not fit the model."""
    return _chosen(layers_of(facts), config.network, effective.parts(config), "sd1" if facts is None else facts.family)


@lru_cache(maxsize=8)
def _chosen(layers: Sequence[Layer], network: NetworkConfig, parts: tuple[str, ...], family: str) -> tuple[SelectedLayer, ...]:
    found = tuple(layer_selection.select_layers(layers, network, parts, family))
    if parts and not found:
        raise layer_selection.nothing_left()
    return found


def network_parameters(config: TrainConfig, facts: ModelFacts | None) -> int:
    """Numbers that are trained."""
    chosen = chosen_layers(config, facts)
    return sum(one.numbers for one in chosen) - _alphas(chosen)


def planned_network(config: TrainConfig, facts: ModelFacts | None) -> PlannedNetwork:
    """The network as `check` and the tab show it. Raises ConfigError where lists of blocks do not fit the model."""
    chosen = chosen_layers(config, facts)
    ranks = Counter(one.plan.rank for one in chosen if NETWORK_KINDS[one.plan.kind].ranked)
    numbers = sum(one.numbers for one in chosen)
    return PlannedNetwork(
        layers=tuple((part, sum(one.plan.part == part for one in chosen)) for part in effective.parts(config)),
        parameters=numbers - _alphas(chosen),
        file_bytes=numbers * BYTES[config.save.precision],
        ranks=tuple(rank for rank, _ in ranks.most_common()),
        preset=layer_selection.preset_of(config.network),
        exact=facts is not None and bool(facts.layers),
    )


def group_rates(config: TrainConfig, facts: ModelFacts | None) -> dict[str, float]:
    """Each group's learning rate, blocks with shares of it apart: the groups that the optimizer will have."""
    shares: dict[str, set[float]] = {}
    for one in chosen_layers(config, facts):
        for name in (one.plan.part, f"{one.plan.part} plus") if NETWORK_KINDS[one.plan.kind].upper else (one.plan.part,):
            shares.setdefault(name, set()).add(one.plan.rate)
    return {
        effective.group_name(name, share): rate * share
        for name, rate in effective.rates(config).items()
        for share in sorted(shares.get(name, ()), reverse=True)
    }


def pattern_hits(config: TrainConfig, facts: ModelFacts | None) -> dict[str, dict[str, int]]:
    """How many layers each pattern hits: {"include": {pattern: layers}, "exclude": {...}}."""
    network = config.network
    if not (network.include or network.exclude):
        return {"include": {}, "exclude": {}}
    return layer_selection.pattern_hits(layers_of(facts), network, effective.parts(config), "sd1" if facts is None else facts.family)


def _alphas(chosen: Sequence[SelectedLayer]) -> int:
    """A file holds one more number for each layer whose strength is written down."""
    return sum(NETWORK_KINDS[one.plan.kind].always_alpha for one in chosen)
